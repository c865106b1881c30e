import html
import re
from html.parser import HTMLParser

import pytest
from synthetic_artifacts import LEVELS, collected, synthetic_config, write_artifacts

from raft_tasks.artifacts import read_json, write_json
from raft_tasks.reporting.measures import measure
from raft_tasks.reporting.origin import Origin
from raft_tasks.reporting.report import write_report, write_summary
from raft_tasks.reporting.study import collect
from raft_tasks.reporting.wording import headline, points, second_headline, sentences

ORIGIN = Origin("abc1234", {"data/archive": "md5 0123456789.dir"})
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


def written(folder, config, levels=LEVELS):
    write_artifacts(folder / "artifacts", config, levels)
    study = collected(folder / "artifacts", config)
    metrics = measure(study)
    write_report(study, metrics, ORIGIN, folder / "report.html")
    return study, metrics, (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return written(tmp_path_factory.mktemp("report"), synthetic_config())


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
    methods = metrics["domains"]["archive"]["methods"]
    for method in methods.values():
        for score in method["scores"].values():
            assert points(score["estimate"]) in page
    assert "abc1234" in page
    for file in study.files:
        assert str(file.path) in page
        assert f"dvc repro {file.stage}" in page
    assert headline(metrics, metrics["domains"]["archive"]) in page
    limits = page[page.index('id="limits"') :]
    for limit in (
        "One base model, models/pocket-base.",
        "3 training seeds",
        "Rules score",
        "archive ask in other words",
    ):
        assert limit in limits, limit


def test_the_page_shows_merges_with_the_unmerged_scores(report):
    table = re.search(r"Merge after training</b>.*?</table>", report[2], re.DOTALL)[0]
    for cell in ("interpolate", "0.6", "95.2", "84.4", "99.1", "73.3", "87.1", "0.0123"):
        assert cell in table
    assert "no coefficient met the bound" in table
    assert table.count("<tr>") == 4  # the head, and one row per seed of the one method that merges


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
        "same_target_without_teacher": [],
        "anchored": None,
        "domains": {"archive": {"measures": {"domain_acc": [], "general": []}, "methods": methods}},
    }


def whole_and_domain(metrics):
    return metrics, metrics["domains"]["archive"]


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


@pytest.mark.parametrize(
    ("domain", "general", "words"),
    [
        (TIE, DOWN, "SFT anchored shows no clear difference from RAFT in the domain, and kept more of what"),
        (UP, UP, "SFT anchored learned less of the domain than RAFT, and kept less of what"),
        (UP, DOWN, "SFT anchored learned less of the domain than RAFT, but kept more of what"),
    ],
)
def test_the_second_headline_turns_rafts_lead_over_the_anchored_method_round(domain, general, words):
    metrics = metrics_with(domain, general) | {"anchored": "sft_anchored"}
    found = metrics["domains"]["archive"]
    found["methods"]["sft_anchored"] = found["methods"]["sft"]
    assert words in second_headline(metrics, found)
    assert second_headline(metrics | {"anchored": None}, found) is None
    assert (
        "RAFT against SFT anchored (regularised towards the base on anchors): domain score"
        in sentences(metrics, found)[-1]
    )


def test_unreliable_anchors_are_warned_of_at_the_top(tmp_path):
    config = synthetic_config(seeds=[0], methods=["sft", "fused_sft_anchored"])
    write_artifacts(tmp_path / "artifacts", config)
    study = collected(tmp_path / "artifacts", config)
    study.anchors["generated"].statistics["warning"] = "just 12 % of the turns are well-formed"
    metrics = measure(study)
    write_report(study, metrics, ORIGIN, tmp_path / "report.html")
    write_summary(metrics, ORIGIN, tmp_path / "report.md")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("just 12 % of the turns are well-formed") < page.index("<figure")
    assert page.count("just 12 % of the turns are well-formed") == 2
    assert "- **Warning**, anchors generated: just 12 %" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_anchors_are_shown_with_what_was_dropped_and_why(report):
    section = re.search(r'<section id="anchors".*?</section>', report[2], re.DOTALL)[0]
    for words in (
        "30 of 40 kept (75.0 %)", "97.5 % of the generated prompts", "0.123 of all words", "0.457 of all pairs",
        "0.679 of all triples", "two kept prompts 0.31", ">example<", "width:60.0%", "Name 4 &lt;rivers&gt;.",
        "fused SFT anchored",
    ):  # fmt: skip
        assert words in section, words
    assert re.search(r'dropped: near duplicate</th><td class="number">10</td><td class="number">25.0 %', section)
    assert section.count('data-kept="kept"') == 20
    assert section.count('data-kept="dropped"') == 10
    assert "Warning" not in section


def cells(page, caption):
    """The table's rows, each a list of its cells' texts."""
    table = re.search(rf"<table[^>]*>\s*<caption>(?:(?!</table>).)*?{caption}.*?</table>", page, re.DOTALL)[0]
    rows = re.findall(r"<tr.*?</tr>", table.split("</thead>")[1], re.DOTALL)
    texts = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return {
        row[0]: row[1:]
        for row in ([" ".join(html.unescape(re.sub("<.*?>", " ", one)).split()) for one in row] for row in texts)
    }


def test_the_papers_table_is_compared_with_ours(report):
    overall = report[1]["overall"]["methods"]
    table = cells(report[2], "Our scores and the paper")
    assert len(table["RAFT"]) == 12
    score, share = overall["raft"]["scores"]["domain_acc"], overall["raft"]["share_of_reference"]["domain_acc"]
    shown = [points(score["estimate"]), points(score["low"]), "to", points(score["high"])]
    assert table["RAFT"][0].split() == [*shown, points(share["estimate"] - 1, signed=True)]
    assert table["RAFT"][1:4] == ["17.2 +34.0", "16.5 +9.2", "21.6 +26.3"]
    assert table["RAFT"][4].startswith(points(overall["raft"]["scores"]["general"]["estimate"]))
    assert table["RAFT"][8].startswith(points(overall["raft"]["scores"]["pocket_instructions"]["estimate"]))
    assert table["FAPM"][:2] == ["–", "10.7 −16.4"]
    assert table["fused SFT anchored"][1:4] == ["–", "–", "–"]
    ablation = cells(report[2], "Ablation")
    assert ablation["Science (paper)"] == ["8.3", "10.0", "13.3", "62.0", "64.0", "65.0", "23.5", "27.2", "32.7"]
    methods = report[1]["domains"]["archive"]["methods"]
    for place, method in enumerate(("sft", "fused_sft", "raft")):
        assert ablation["archive"][place].startswith(points(methods[method]["scores"]["domain_acc"]["estimate"]))


def test_flips_are_counted_and_listed(report):
    tested = report[1]["domains"]["archive"]["methods"]["sft"]["degradation"]
    shown = cells(report[2], "Flipped items")["SFT"]
    for cell, one in zip(shown, tested.values(), strict=True):
        chance = "p < 0.001" if one["p_holm"] < 0.001 else f"p = {one['p_holm']:.3f}"
        assert cell == f"{round(one['lost'], 1):g} lost {round(one['won'], 1):g} won {chance}"
    listed = re.findall(r'<li data-method="(\w+)" data-direction="(\w+)"', report[2])
    assert len(listed) == 200
    assert {("sft", "lost"), ("sft", "won"), ("raft", "won")} < set(listed)
    assert len(report[2]) < 1_000_000


def test_the_distance_to_the_base_is_shown(report):
    raft = report[1]["domains"]["archive"]["methods"]["raft"]["analysis"]
    shown = cells(report[2], "KL, leaks, words and style")
    kl = [f"{raft['kl'][side]:.2f}" for side in ("domain", "general")]
    leaks = f"{points(raft['leak']['share'])} % 0.0 %"
    assert shown["RAFT"] == [*kl, leaks, "25.0 % 0.0 %", "9.5 6.0", "9.5 6.0", "0.31", "0.31"]
    assert shown["SFT"][3] == "–"  # no teacher whose words it could say
    assert "“As the &lt;reference&gt; says.”" in report[2]


def test_every_number_has_its_command(report):
    page = report[2]
    stages = " ".join(f"{stage}@archive-raft-0" for stage in ("distill", "benchmark", "analyse"))
    command = f"dvc repro -sf {stages} distill@archive-raft-1"
    assert command in page
    assert "dvc repro -sf anchors" in page
    assert "<code>data/archive</code>, md5 0123456789.dir" in page


def test_sweeps_are_drawn_with_the_papers_finding(tmp_path):
    config = synthetic_config(seeds=[0], methods=["sft", "raft"])
    write_artifacts(tmp_path / "artifacts", config)
    head = "parameter,value,domain,method,seeds,measure,estimate,low,high,experiment"
    rows = [
        f"{key},{value},archive,raft,1,{measure},{score},,,exp-{value}"
        for key, value, measure, score in (
            ("semantic_filter.tau", "0.5", "domain_acc", 0.4321), ("semantic_filter.tau", "0.8", "domain_acc", 0.5),
            ("train.learning_rate", "0.01", "domain_acc", 0.999), ("train.learning_rate", "0.01", "general", 0.998),
        )
    ]  # fmt: skip
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "tau.csv").write_text("\n".join([head, *rows]))
    study = collect(tmp_path / "artifacts", tmp_path / "sweeps", config)
    metrics = measure(study)
    write_report(study, metrics, ORIGIN, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0.8 is best on both measures" in page
    assert cells(page, "tau")["semantic_filter.tau 0.5"] == ["archive", "RAFT", "domain", "43.2", "1", "exp-0.5"]
    assert [point["setting"] for point in metrics["overall"]["frontier"] if point["best"]] == ["learning rate 0.01"]
    assert 'aria-label="tau: RAFT, archive"' in page


def test_the_markdown_is_short_and_says_what_the_numbers_say(report, tmp_path):
    metrics = report[1]
    write_summary(metrics, ORIGIN, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith(f"**{headline(metrics, metrics['overall'])}**")
    for line in sentences(metrics, metrics["overall"]):
        assert f"- {line}\n" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7
    assert len({line.count("|") for line in table}) == 1
    raft = metrics["domains"]["archive"]["methods"]["raft"]
    row = next(line for line in table if line.startswith("| **RAFT** |"))
    assert points(raft["against_reference"]["general"]["estimate"], signed=True) in row
    assert len(text) < 4000
    assert "\n\n\n" not in text


def test_raft_that_loses_is_said_to_lose(tmp_path):
    levels = LEVELS | {"raft": LEVELS["sft"], "sft": LEVELS["raft"]}
    _, metrics, page = written(tmp_path, synthetic_config(seeds=[0, 1], methods=["sft", "raft"]), levels)
    assert "kept less of what the model could do before" in headline(metrics, metrics["domains"]["archive"])
    assert "kept less of what the model could do before" in page


def test_several_domains_share_a_page(tmp_path):
    config = synthetic_config(seeds=[0, 1], methods=["sft", "raft"], domains=["archive", "statute"])
    _, metrics, page = written(tmp_path, config)
    outline = Outline()
    outline.feed(page)
    assert len(outline.ids) == len(set(outline.ids))
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)
    assert page.count("<h1>") == 1
    assert page.count(headline(metrics, metrics["domains"]["statute"])) >= 1
    assert [int(n) for n in re.findall(r"<b>Figure (\d+)\.", page)] == list(range(1, 16))


def test_one_seed_and_one_method_still_make_a_page(tmp_path):
    config = synthetic_config(seeds=[0], methods=["sft"])
    _, metrics, page = written(tmp_path, config)
    assert "it did not train both" in page
    assert sentences(metrics, metrics["domains"]["archive"]) == []
    assert "One training seed" in page


def test_no_general_tasks_no_rewrite_passed(tmp_path):
    config = synthetic_config(seeds=[0], methods=["sft", "raft"])
    config = config.model_copy(update={"benchmark": config.benchmark.model_copy(update={"tasks": []})})
    write_artifacts(tmp_path / "artifacts", config)
    study = collected(tmp_path / "artifacts", config)
    domain = study.domains["archive"]
    domain.fused[:] = [
        row.model_copy(update={"passed": False, "fused": row.answer, "score": None, "similarity": -0.1})
        for row in domain.fused
    ]
    write_report(study, measure(study), Origin(None, {}), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0 of 120 rewrites (0.0 %)" in page
    assert "Retention" not in page
    assert "not in a git repository" in page


def test_general_questions_are_answered_side_by_side(report):
    table = re.search(r"3 general questions.*?</table>", report[2], re.DOTALL)[0]
    assert re.findall(r'<th scope="col">(.*?)</th>', table) == ["question", "base", "SFT", "RAFT", "fused SFT anchored"]
    first = table.split("<tbody>")[1].split("</tr>")[0]
    assert re.findall(r">(correct|wrong)<", first)[:3] == ["correct", "wrong", "correct"]
    training = report[1]["domains"]["archive"]["methods"]
    assert "kl_weight_at_max" in training["raft"]["training"]
    assert "kl_weight_at_max" not in training["sft"]["training"]


def test_thoughts_that_were_cut_in_training_are_said(tmp_path):
    config = synthetic_config(seeds=[0, 1], methods=["sft", "raft"])
    write_artifacts(tmp_path, config)
    assert "behind a thought" not in page_of(tmp_path, config)
    for seed, unfinished in ((0, 4), (1, 6)):
        summary = tmp_path / f"archive/runs/raft-{seed}/summary.json"
        write_json(summary, {**read_json(summary), "thoughts": 31, "unfinished_thoughts": unfinished})
    page = page_of(tmp_path, config)
    assert "RAFT learned 31 answers behind a thought of the base; 5 of these thoughts met" in page
    assert "SFT learned" not in page.replace("RAFT learned", "")


def page_of(artifacts, config):
    study = collected(artifacts, config)
    write_report(study, measure(study), ORIGIN, artifacts / "report.html")
    return (artifacts / "report.html").read_text(encoding="utf-8")
