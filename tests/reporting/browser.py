"""Pages in headless Chromium: how they look at several widths, what they fetch, and what axe-core finds."""

import html
import json
import re
import shutil
import subprocess
from importlib.resources import files

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on the PATH")
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
axe.run(document, {resultTypes: ["violations"]}).then((report) => {  // of what passes, an example
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


def examine(folder, name):
    """What the page `name` of `folder`, at each width, and a faulty one (300 wide) say of themselves, by width."""
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page = (folder / name).read_text(encoding="utf-8")
    for copy, text in (("page", page), ("faulty", FAULTY)):
        own = f"<script>{axe}</script>{EXAMINE}"
        (folder / f"{copy}.html").write_text(text.replace("</body></html>", "</body>").replace("</body>", own))
    frames = [f'<iframe src="page.html" width="{width}" height="800" style="border:0"></iframe>' for width in WIDTHS]
    frames.append('<iframe src="faulty.html" width="300" height="300" style="border:0"></iframe>')
    (folder / "frame.html").write_text(f"<body>{FRAME}{''.join(frames)}</body>")
    dom = chromium(folder, folder / "frame.html", "--virtual-time-budget=60000", "--dump-dom")
    said = re.search(r"<pre>(.*?)</pre>", dom, re.DOTALL)
    assert said, dom[-500:]
    return {one["width"]: one for one in json.loads(html.unescape(said[1]))}
