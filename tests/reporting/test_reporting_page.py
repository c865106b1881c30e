"""The page in headless Chromium: on a phone and on a desk, from file://, on paper, and to those who do not see it."""

import html
import json
import re
import shutil
import subprocess
from importlib.resources import files

import pytest
from pypdf import PdfReader
from synthetic_artifacts import collected, synthetic_params, write_artifacts

from raft_tasks.reporting.report import Origin, write_report
from raft_tasks.reporting.tables import measure

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on the PATH")

WIDTHS = (390, 1100)
FAULTY = (
    '<!doctype html><html><body><img src="data:,"><input><p style="color:#aaa;background:#fff">pale</p></body></html>'
)
# Each page examines itself in a frame of its width and sends what it found to the page around it.
EXAMINE = """
<script>
const found = {width: innerWidth, wide: document.documentElement.scrollWidth,
  high: document.documentElement.scrollHeight, fetched: performance.getEntriesByType("resource").length};
const shown = (part) => [...part.querySelectorAll("li")].filter((item) => item.checkVisibility()).length;
for (const one of document.querySelectorAll("details")) one.open = true;
const part = document.querySelector("[data-browse]");
if (part) {
  const [words, method] = [part.querySelector("[data-words]"), part.querySelector("[data-field=method]")];
  const search = (text, name) => {
    words.value = text; method.value = name; words.dispatchEvent(new Event("input", {bubbles: true}));
    return [shown(part), part.querySelector("output").textContent];
  };
  found.search = {all: search("", ""), sft: search("", "sft"), words: search("NO reactor", "sft")};
  found.search.none = search("zzz", "");
  search("", "");
}
axe.run().then((report) => {
  found.faults = report.violations.map((one) => [one.impact, one.id, one.nodes[0].html.slice(0, 300)]);
  found.rules = report.passes.length;
  parent.postMessage(found, "*");
});
</script></body>
"""
FRAME = """
<script>
const found = [];
onmessage = (event) => {
  found.push(event.data);
  if (found.length === frames.length) {
    const out = document.createElement("pre"); out.textContent = JSON.stringify(found); document.body.append(out);
  }
};
</script>
"""


def chromium(folder, address, *options):
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}", *options, f"file://{address}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    params = synthetic_params(seeds=[0, 1], methods=["sft", "raft", "fused_sft_anchored"])
    few = {"flips": 6, "sample": 3, "examples": 1}  # each kind of thing, so that axe is done in seconds
    params = params.model_copy(update={"report": params.report.model_copy(update=few)})
    write_artifacts(folder / "artifacts", params)
    study = collected(folder / "artifacts", params)
    write_report(study, measure(study), Origin("abc1234", {"data/registry": "md5 0123.dir"}), folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def examined(written):
    """What the page, at each width, and a faulty one say of themselves, by width."""
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page = (written / "report.html").read_text(encoding="utf-8")
    for name, text in (("page", page), ("faulty", FAULTY)):
        own = f"<script>{axe}</script>{EXAMINE}"
        (written / f"{name}.html").write_text(text.replace("</body></html>", "</body>").replace("</body>", own))
    frames = [f'<iframe src="page.html" width="{width}" height="800" style="border:0"></iframe>' for width in WIDTHS]
    frames.append('<iframe src="faulty.html" width="300" height="300" style="border:0"></iframe>')
    (written / "frame.html").write_text(f"<body>{FRAME}{''.join(frames)}</body>")
    dom = chromium(written, written / "frame.html", "--virtual-time-budget=60000", "--dump-dom")
    said = re.search(r"<pre>(.*?)</pre>", dom, re.DOTALL)
    assert said, dom[-500:]
    return {one["width"]: one for one in json.loads(html.unescape(said[1]))}


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
    assert "Ours beside the paper" in " ".join(" ".join(pages).split())
    assert not any("shown" in page and "words method flip" in " ".join(page.split()) for page in pages)
