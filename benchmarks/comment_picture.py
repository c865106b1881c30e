"""The gate's comment on a pull request as GitHub shows it, as a picture.

    raft gate archive --candidate MODEL --base models/pocket-base      # writes reports/gate/comment.md
    python benchmarks/comment_picture.py reports/gate/comment.md docs/comment.png

GitHub's Markdown is CommonMark with tables; its colours and widths are imitated. Needs Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory

WIDTH, HEIGHT = 920, 4000  # CSS pixels; what is blank below the comment is cut off
COLOURS = 48
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{margin: 12px; font: 14px/1.5 "Noto Sans", "Liberation Sans", Helvetica, Arial, sans-serif; color: #1f2328}}
.comment {{border: 1px solid #d1d9e0; border-radius: 6px}}
.head {{padding: 8px 16px; background: #f6f8fa; border-bottom: 1px solid #d1d9e0; color: #59636e}}
.head b {{color: #1f2328}} .bot {{border: 1px solid #d1d9e0; border-radius: 2em; padding: 0 7px; font-size: 12px}}
.body {{padding: 16px}} h3 {{font-size: 1.25em; margin: 0 0 16px}} p {{margin: 0 0 16px}}
table {{border-collapse: collapse; margin-bottom: 16px; font-size: 13px}}
th, td {{border: 1px solid #d1d9e0; padding: 6px 13px; text-align: left}} tr:nth-child(2n) td {{background: #f6f8fa}}
code {{background: #818b981f; border-radius: 6px; padding: .2em .4em; font: 85% "Liberation Mono", monospace}}
</style><div class="comment"><div class="head"><b>github-actions</b> <span class="bot">bot</span> commented</div>
<div class="body">{body}</div></div>
"""


def draw(comment: str, picture: Path) -> None:
    from markdown_it import MarkdownIt
    from PIL import Image, ImageChops

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("expected chromium, chromium-browser or google-chrome on the PATH; `apt-get install chromium`")
    with TemporaryDirectory() as name:
        folder = Path(name)
        body = MarkdownIt("commonmark", {"html": True}).enable("table").render(comment)
        (folder / "page.html").write_text(PAGE.format(body=body), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
                   "--no-first-run", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}",
                   f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={folder / 'page.png'}"]  # fmt: skip
        run([browser, *options, f"file://{folder / 'page.html'}"], check=True, capture_output=True)
        with Image.open(folder / "page.png") as page:
            image = page.convert("RGB")
    below = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    if below is None:
        raise SystemExit("the page is empty")
    image.crop((0, 0, image.width, below[3] + 12)).quantize(COLOURS).save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comment", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    draw(given.comment.read_text(encoding="utf-8"), given.picture)


if __name__ == "__main__":
    main()
