"""docs/library.md: every block runs by itself and prints what stands under it."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs/library.md"
BLOCK = re.compile(r"^```python\n(.*?)^```\n^```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def test_every_block_is_followed_by_its_output():
    assert len(BLOCKS) == PAGE.read_text(encoding="utf-8").count("```python\n") == 4


@pytest.mark.parametrize(("code", "output"), BLOCKS, ids=["loss", "filter", "statistics", "gate"])
def test_a_block_prints_what_the_page_says(code, output):
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {})
    assert printed.getvalue() == output
