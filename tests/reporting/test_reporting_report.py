import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from synthetic_artifacts import LEVELS, collected, synthetic_params, write_artifacts

from raft_tasks.reporting.report import Origin, headline, limits, sentences, write_report
from raft_tasks.reporting.tables import measure, points

ORIGIN = Origin("abc1234", {"data/registry": "md5 0123456789.dir"})
VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect"}


class Outline(HTMLParser):
    """Checks that tags nest and collects ids, links and what would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.fetched, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append((tag, named))
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named["href"]] if tag == "a" else []
        self.fetched += [named[name] for name in ("src", "data", "srcset") if name in named]
        self.fetched += [named["href"]] if tag == "link" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def written(folder, params, levels=LEVELS):
    write_artifacts(folder / "artifacts", params, levels)
    study = collected(folder / "artifacts", params)
    metrics = measure(study)
    write_report(study, metrics, ORIGIN, folder / "report.html")
    return study, metrics, (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return written(tmp_path_factory.mktemp("report"), synthetic_params())


def test_the_page_is_wellformed_and_fetches_nothing(report):
    page = report[2]
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.fetched == []
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert len(outline.ids) == len(set(outline.ids))
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)


def test_the_page_is_semantic(report):
    outline = Outline()
    outline.feed(report[2])
    tags = [tag for tag, _ in outline.tags]
    assert dict(outline.tags)["html"]["lang"] == "en"
    assert tags.count("h1") == 1
    assert tags.count("table") == tags.count("caption")
    assert all(named.get("scope") in ("row", "col", "colgroup") for tag, named in outline.tags if tag == "th")
    assert any(named.get("name") == "viewport" for tag, named in outline.tags if tag == "meta")
    assert "@media print" in report[2]


def test_the_page_shows_the_numbers_and_where_they_came_from(report):
    study, metrics, page = report
    methods = metrics["domains"]["registry"]["methods"]
    for method in methods.values():
        for score in method["scores"].values():
            assert points(score["estimate"]) in page
    assert "abc1234" in page
    for file in study.files:
        assert str(file.path) in page
        assert f"dvc repro {file.stage}" in page
    assert headline(metrics, metrics["domains"]["registry"]) in page
    for limit in limits(study):
        assert limit.replace("'", "&#39;") in page


def test_the_page_shows_what_was_taken_back_beside_the_whole_change(report):
    table = re.search(r"What was taken back after training.*?</table>", report[2], re.DOTALL)[0]
    for cell in ("interpolate", "0.6", "95.2", "84.4", "99.1", "73.3", "87.1", "0.0123"):
        assert cell in table
    assert "no coefficient kept the bound" in table
    assert table.count("<tr>") == 4  # the head, and one row per seed of the one method that takes something back


def test_what_models_say_is_text_not_markup(report):
    assert "I see &lt;b&gt;no&lt;/b&gt; &amp; reactor." in report[2]
    assert "<b>no</b>" not in report[2]


def test_example_rows_show_every_stage_and_every_models_answer(report):
    page = report[2]
    articles = re.findall(r"<article.*?</article>", page, flags=re.DOTALL)
    assert len(articles) == 3
    assert "rejected: the reference answer is kept" in articles[1]
    for article in articles:
        assert article.count('<td class="answer">') == 7
        assert "similarity" in article
    assert len({re.search(r"<h3>(.*?)</h3>", article)[1].rsplit("-", 1)[0] for article in articles}) == 3


def test_the_same_artifacts_give_the_same_page(report, tmp_path):
    study, metrics, page = report
    write_report(study, metrics, ORIGIN, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def metrics_with(domain, general):
    change = {
        measure: {"estimate": value, "low": value - 0.01, "high": value + 0.01, "verdict": verdict}
        for measure, (value, verdict) in {"domain_acc": domain, "general": general}.items()
    }
    methods = {"raft": {"against_reference": change}, "sft": {"candidate_against_it": change}}
    return {
        "candidate": "raft",
        "reference": "sft",
        "same_answers_without_teacher": [],
        "domains": {"registry": {"measures": {"domain_acc": [], "general": []}, "methods": methods}},
    }


def whole_and_domain(metrics):
    return metrics, metrics["domains"]["registry"]


UP, DOWN, TIE = (0.05, "higher"), (-0.05, "lower"), (0.0, "no clear difference")


@pytest.mark.parametrize(
    ("domain", "general", "words"),
    [
        (UP, UP, "RAFT learned more of the domain than SFT, and kept more of what the model could do before."),
        (UP, DOWN, "RAFT learned more of the domain than SFT, but kept less of what the model could do before."),
        (DOWN, UP, "RAFT learned less of the domain than SFT, but kept more of what the model could do before."),
        (TIE, UP, "RAFT shows no clear difference from SFT in the domain, and kept more of what the model could"),
        (TIE, TIE, "no clear difference from SFT in the domain, and shows no clear difference in general ability."),
        (DOWN, DOWN, "RAFT learned less of the domain than SFT, and kept less"),
    ],
)
def test_the_headline_says_what_the_intervals_say(domain, general, words):
    assert words in headline(*whole_and_domain(metrics_with(domain, general)))


def test_sentences_claim_a_direction_only_where_it_is_clear():
    (line,) = sentences(*whole_and_domain(metrics_with(UP, TIE)))
    assert line == (
        "RAFT against SFT: domain score higher (+5.0 points, +4.0 to +6.0); "
        "general score not clearly different (0.0 points, −1.0 to +1.0)."
    )


def test_raft_that_loses_is_said_to_lose(tmp_path):
    levels = LEVELS | {"raft": LEVELS["sft"], "sft": LEVELS["raft"]}
    _, metrics, page = written(tmp_path, synthetic_params(seeds=[0, 1], methods=["sft", "raft"]), levels)
    assert "kept less of what the model could do before" in headline(metrics, metrics["domains"]["registry"])
    assert "kept less of what the model could do before" in page


def test_several_domains_share_a_page(tmp_path):
    params = synthetic_params(seeds=[0, 1], methods=["sft", "raft"], domains=["registry", "statute"])
    _, metrics, page = written(tmp_path, params)
    outline = Outline()
    outline.feed(page)
    assert len(outline.ids) == len(set(outline.ids))
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)
    assert page.count("<h1>") == 1
    assert page.count(headline(metrics, metrics["domains"]["statute"])) >= 1
    assert [int(n) for n in re.findall(r"<b>Figure (\d+)\.", page)] == list(range(1, 14))


def test_one_seed_and_one_method_still_make_a_page(tmp_path):
    params = synthetic_params(seeds=[0], methods=["sft"])
    study, metrics, page = written(tmp_path, params)
    assert "so they are not compared" in page
    assert sentences(metrics, metrics["domains"]["registry"]) == []
    assert any("One training seed" in limit for limit in limits(study))


def test_no_general_tasks_no_rewrite_passed(tmp_path):
    params = synthetic_params(seeds=[0], methods=["sft", "raft"])
    params = params.model_copy(update={"benchmark": params.benchmark.model_copy(update={"tasks": []})})
    write_artifacts(tmp_path / "artifacts", params)
    study = collected(tmp_path / "artifacts", params)
    domain = study.domains["registry"]
    domain.fused[:] = [
        row.model_copy(update={"passed": False, "fused": row.answer, "score": None, "similarity": -0.1})
        for row in domain.fused
    ]
    write_report(study, measure(study), Origin(None, {}), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0 of 120 rewrites (0.0 %)" in page
    assert "Retention" not in page
    assert "not in a git repository" in page


def browser():
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@pytest.mark.skipif(browser() is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1100, 390])
def test_the_page_does_not_overflow(report, tmp_path, width):
    # the page measures itself in a frame of the width, and writes what it finds into its title
    (tmp_path / "page.html").write_text(report[2], encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        f'<iframe id="f" src="page.html" style="width:{width}px;height:800px;border:0"></iframe>'
        "<script>onload = () => { const d = document.getElementById('f').contentDocument.documentElement;"
        " document.body.append(`wide ${d.scrollWidth} high ${d.scrollHeight}`); }</script>"
    )
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,900",
        "--virtual-time-budget=2000", "--dump-dom", f"file://{tmp_path / 'frame.html'}",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"wide (\d+) high (\d+)", dom)
    assert found, dom[-500:]
    assert int(found[1]) <= width
    assert int(found[2]) > 3000
