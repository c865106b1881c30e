"""The page of a comparison: what it says, and in headless Chromium what the report's page is held to."""

import re

import pytest
from browser import WIDTHS, examine, needs_chromium
from synthetic_artifacts import TASKS, collected, synthetic_config, write_artifacts

from raft_tasks.reporting.origin import Origin
from raft_tasks.reporting.side_by_side import measure_side_by_side, write_side_by_side
from raft_tasks.reporting.study import Answered

COMMAND = "raft compare base=models/pocket-base sft=git:HEAD:sft-0 sft=git:HEAD:sft-1"


def compare(folder, methods, domains):
    """Write the page of made-up models into `folder`; returns it."""
    config = synthetic_config(seeds=[0, 1], methods=methods, domains=domains)
    config = config.model_copy(update={"report": config.report.model_copy(update={"flips": 6})})
    write_artifacts(folder / "artifacts", config)
    study = collected(folder / "artifacts", config)
    answers = {name: Answered(one.test, one.base, one.runs) for name, one in study.domains.items()}
    whats = {
        "base": ["models/pocket-base"],
        **{name: [f"git:HEAD:{name}-{seed}" for seed in (0, 1)] for name in methods},
    }
    metrics = measure_side_by_side(answers, TASKS, whats, config.report)
    write_side_by_side(
        answers, metrics, config.report, Origin("abc1234", {"data/archive": "md5 0.dir"}), COMMAND, folder
    )
    return (folder / "report.html").read_text(encoding="utf-8")


def test_one_model_is_the_headline(tmp_path):
    page = compare(tmp_path, ["raft"], ["archive"])
    assert "<h1>RAFT learned more of the domain than base" in page
    assert 'class="leads"' not in page


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    return folder, compare(folder, ["sft", "raft"], ["archive", "statute"])


def test_several_models_are_told_one_by_one(several):
    page = several[1]
    assert "<h1>2 models against base, in 2 domains</h1>" in page
    leads = re.search(r'<ul class="leads">.*?</ul>', page, re.DOTALL)[0]
    assert re.findall(r"<li><b>(\w+).</b> (\w+) learned more", leads) == [
        (domain, name) for domain in ("archive", "statute") for name in ("SFT", "RAFT")
    ]
    assert page.count("General: plain average of the 4 tasks to its right") == 2


@pytest.fixture(scope="module")
def examined(several):
    return examine(several[0], "report.html")


@needs_chromium
@pytest.mark.parametrize("width", WIDTHS)
def test_fits_its_width_fetches_nothing_and_axe_finds_no_serious_fault(examined, width):
    found = examined[width]
    assert found["wide"] <= width
    assert found["high"] > 2000
    assert found["fetched"] == 0
    assert found["rules"] > 20
    assert [fault for fault in found["faults"] if fault[0] in ("serious", "critical")] == []
    assert "image-alt" in {fault[1] for fault in examined[300]["faults"]}
    assert found["search"]["all"] == [6, "6 of 6 shown"]
