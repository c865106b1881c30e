"""The scale benchmark of ingest runs, and finds what it put in."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_benchmark_runs_small():
    command = [sys.executable, "benchmarks/ingest_scale.py", "2000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    counts = {name: int(number) for name, number in re.findall(r"'([\w -]+)': (\d+)", done.stdout)}
    assert re.search(r"2,000 rows .* rows/s  peak +\d+ MiB", done.stdout)
    assert counts["missing"] == counts["e-mail address"] == 20
    assert counts["duplicate"] == 40
    assert sum(counts.values()) - counts["e-mail address"] == 2000  # a flagged row is kept
