"""A short real run of the whole pipeline, from scratch, in a temporary clone of HEAD; then once more.

Small in seeds, methods, epochs and questions, whole in stages: what `.ci/run` runs after the tests. It shows that the
parts work together, not that the method does: that is what `make demo` is for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

SMALL = {
    "run": {"domains": ["archive"], "methods": ["sft", "raft"], "seeds": [0]},
    "train": {"epochs": 1},
}
ITEMS = 60  # of each general task


def small_clone(folder: Path) -> Path:
    """Clone HEAD into `folder`/project and make its params small."""
    clone = folder / "project"
    subprocess.run(["git", "clone", "-q", str(Path(__file__).resolve().parents[1]), str(clone)], check=True)
    path = clone / "params.yaml"
    config = yaml.safe_load(path.read_text())
    for section, values in SMALL.items():
        config.setdefault(section, {}).update(values)
    config["benchmark"]["limit"] = dict.fromkeys(config["benchmark"]["tasks"], ITEMS)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return clone


def run_pipeline(clone: Path) -> str:
    """Run the pipeline in `clone`, echo its output and return it; ends this process if it fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run"],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone)},  # the stages run the clone's code too
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait():
        sys.exit(f"the pipeline ended with code {process.returncode} after {time.monotonic() - began:.0f} s")
    print(f"-- {time.monotonic() - began:.1f} s", flush=True)
    return "".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clone = small_clone(Path(folder))
        run_pipeline(clone)
        metrics = json.loads((clone / "reports" / "metrics.json").read_text())
        page = (clone / "reports" / "report.html").read_text()
        for method in ("base", *SMALL["run"]["methods"]):
            if method not in metrics["domains"]["archive"]["methods"] or method not in page:
                sys.exit(f"the report does not show {method}")
        if "Nothing to do" not in run_pipeline(clone):
            sys.exit("a second run found something to do")
    print("smoke: 1 passed, 0 failed")


if __name__ == "__main__":
    main()
