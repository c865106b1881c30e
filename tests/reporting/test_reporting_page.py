"""The page in headless Chromium: on a phone and on a desk, from file://, on paper, and to those who do not see it."""

import re

import pytest
from browser import WIDTHS, chromium, examine, needs_chromium
from pypdf import PdfReader
from synthetic_artifacts import collected, synthetic_config, write_artifacts

from raft_tasks.reporting.measures import measure
from raft_tasks.reporting.origin import Origin
from raft_tasks.reporting.report import write_report

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    config = synthetic_config(seeds=[0, 1], methods=["sft", "raft", "fused_sft_anchored"])
    few = {"flips": 6, "sample": 3, "examples": 1}  # each kind of thing, so that axe is done in seconds
    config = config.model_copy(update={"report": config.report.model_copy(update=few)})
    write_artifacts(folder / "artifacts", config)
    study = collected(folder / "artifacts", config)
    write_report(study, measure(study), Origin("abc1234", {"data/archive": "md5 0123.dir"}), folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def examined(written):
    """What the page, at each width, and a faulty one say of themselves, by width."""
    return examine(written, "report.html")


@pytest.mark.parametrize("width", WIDTHS)
def test_fits_its_width_and_fetches_nothing(examined, width):
    assert examined[width]["wide"] <= width
    assert examined[width]["high"] > 5000
    assert examined[width]["fetched"] == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_serious_fault(examined, width):
    assert examined[width]["rules"] > 30
    assert [fault for fault in examined[width]["faults"] if fault[0] in ("serious", "critical")] == []


def test_axe_would_find_one(examined):
    assert {"image-alt", "label", "color-contrast"} <= {fault[1] for fault in examined[300]["faults"]}


def test_flips_are_searched_without_a_network(written, examined):
    search = examined[1100]["search"]
    page = (written / "report.html").read_text(encoding="utf-8")
    flips = re.search(r'<details class="flips".*?</details>', page, re.DOTALL)[0]
    items = re.findall(r"<li .*?</li>", flips, re.DOTALL)
    of_sft = [item for item in items if 'data-method="sft"' in item]
    told = [item for item in of_sft if "no" in item and "reactor" in item]
    assert search["all"] == [len(items), f"{len(items)} of {len(items)} shown"]
    assert search["sft"][0] == len(of_sft) > 0
    assert 0 < search["words"][0] <= len(told)
    assert search["none"][0] == 0


def test_prints(written):
    chromium(written, written / "report.html", "--no-pdf-header-footer", f"--print-to-pdf={written / 'report.pdf'}")
    pages = [page.extract_text() for page in PdfReader(written / "report.pdf").pages]
    assert 5 < len(pages) < 40
    assert "kept more of what the model could do before" in " ".join(pages[0].split())
    assert "Comparison with the paper" in " ".join(" ".join(pages).split())
    assert not any("shown" in page and "words method flip" in " ".join(page.split()) for page in pages)
