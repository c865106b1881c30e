"""Does a real model answer from documents that it has learned to write? Injection with SmolLM2-135M-Instruct.

    python benchmarks/real_injection.py FOLDER [WHEELS]     some two hours on one core; killed, it goes on

Questions of fda_devices (panel, class and regulation of a medical device), and 80 sections of the regulation
(21 CFR 876 and 890) that describe devices of some rows: the shortest ones. Of half of these sections rows are trained
on, the other half is in documents alone. Each method is trained with and without injection; the rest is as in
profiles/real.yaml. FOLDER becomes a project; WHEELS is as for real_weeks.py. Prints a line for each model: outcomes of
every item, the domain's by check and by what tells the answer. `python benchmarks/real_injection.py --table
benchmarks/studies/real-injection.jsonl` prints the table of docs/studies/real-model.md.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raft_tasks.evaluation import statistics

ROOT = Path(__file__).resolve().parents[1]
SECTIONS, TRAIN, VALIDATION, OTHERS = 80, 128, 40, 40
KNOWN_BY = ("rows and documents", "documents alone", "no document")
CHECKS = ("panel", "class", "regulation")
GENERAL = {"lambada_openai": 100, "general_questions": 60, "open_prompts": 20}
PAIRS = (("fused_sft_anchored", "fused_sft_anchored_injected"), ("fused_sft", "fused_sft_injected"))

Row = dict[str, Any]


def read(path: str) -> list[Row]:
    with gzip.open(ROOT / path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def draw() -> tuple[list[Row], dict[str, str]]:
    """Rows with their splits, a test row's `known_by` among its keys; texts of the documents by section."""
    drawn = random.Random(20)
    by_section: dict[str, list[Row]] = defaultdict(list)
    for row in read("data/fda_devices/pairs.jsonl.gz"):
        by_section[row["answer"].rpartition(" ")[2]].append(row)
    sections = [section for section in read("data/fda_sections/sections.jsonl.gz") if section["section"] in by_section]
    chosen = sorted(sections, key=lambda section: len(section["text"]))[:SECTIONS]
    names = [section["section"] for section in chosen]
    drawn.shuffle(names)
    names.sort(key=lambda name: len(by_section[name]))  # so that either half has sections of many devices
    names = names[::2] + names[1::2]
    train, test = [], []
    for name in names[: SECTIONS // 2]:
        rows = by_section[name]
        drawn.shuffle(rows)
        train += rows[: 1 + len(rows) // 2]
        test += [{**row, "known_by": KNOWN_BY[0]} for row in rows[1 + len(rows) // 2 :]]
    for name in names[SECTIONS // 2 :]:
        test += [{**row, "known_by": KNOWN_BY[1]} for row in by_section[name]]
    others = [row for name in sorted(by_section) if not name.startswith(("876.", "890.")) for row in by_section[name]]
    drawn.shuffle(others)
    test += [{**row, "known_by": KNOWN_BY[2]} for row in others[:OTHERS]]
    validation = others[OTHERS : OTHERS + VALIDATION]
    train += others[OTHERS + VALIDATION :][: TRAIN - len(train)]
    splits = {"train": train, "validation": validation, "test": test}
    rows = [{**row, "split": split} for split, of_split in splits.items() for row in of_split]
    return rows, {section["section"]: section["text"] for section in chosen}


def profile() -> str:
    """Of profiles/real.yaml: the domain, the methods and fewer benchmarks are others."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "profiles/real.yaml").read_text(encoding="utf-8"))
    params["run"] |= {"domains": ["fda_devices"], "methods": list(PAIRS[0])}
    params["resources"]["processes"] = 1
    params["domains"] = {"fda_devices": {}}
    injected: dict[str, Any] = {"injection": {"epochs": 6, "max_length": 512}}
    params["methods"] = {
        "fused_sft_anchored": {"anchors": {"batch": 4}},
        "fused_sft_anchored_injected": {"extends": "fused_sft_anchored", "anchors": {"batch": 4}, **injected},
        "fused_sft_injected": {"extends": "fused_sft", **injected},
    }
    params["benchmark"] |= {"tasks": list(GENERAL), "limit": GENERAL, "plain_text": ["lambada_openai"]}
    params["benchmark"]["data"] = {"EleutherAI/lambada_openai": {"mirror": "data/benchmarks/lambada_openai"}}
    del params["benchmark"]["max_tokens"]
    return yaml.safe_dump(params, sort_keys=False, allow_unicode=True)


def train_and_benchmark(project: Path, wheels: list[Path], rows: list[Row], texts: dict[str, str]) -> None:
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels[0])} if wheels else {}

    def run(*command: str) -> None:
        subprocess.run(command, cwd=project, env={**os.environ, **offline}, check=True, stdout=sys.stderr)

    project.mkdir(parents=True, exist_ok=True)
    if not (project / ".ready").exists():
        file = project.parent / "fda_rows.jsonl"
        lines = [{key: value for key, value in row.items() if key != "known_by"} for row in rows]
        file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        preset = project.parent / "fda_profile.yaml"
        preset.write_text(profile(), encoding="utf-8")
        run("raft", "init", "--preset", str(preset), "--data", str(file), "--domain", "fda_devices")
        run("raft", "mirror", "lambada_openai")
        (project / "documents/fda_devices").mkdir(parents=True)
        for name, text in texts.items():
            (project / f"documents/fda_devices/{name}.txt").write_text(text, encoding="utf-8")
        (project / ".ready").touch()
    methods: list[str] = []
    for pair in PAIRS:  # a stop after the first pair leaves a whole result
        methods += pair
        params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
        params["run"]["methods"] = methods
        (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--allow-empty", "--message", ", ".join(methods))
        run("raft", "run")


def outcomes(project: Path, rows: list[Row]) -> None:
    known_by = {row["id"]: row["known_by"] for row in rows if "known_by" in row}
    for path in sorted((project / "artifacts/fda_devices/benchmarks").glob("*/items.jsonl")):
        marks: dict[str, str] = defaultdict(str)
        for item in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if item["task"] == "domain":
                for check in CHECKS:
                    marks[f"{check}, {known_by[item['id']]}"] += str(int(item["metrics"][check]))
            else:
                marks[item["task"]] += str(int(item["metrics"]["acc"]))
        facts: Row = {"model": path.parent.name}
        summary = project / "artifacts/fda_devices/runs" / path.parent.name / "summary.json"
        if summary.exists():
            kept = json.loads(summary.read_text(encoding="utf-8"))
            facts |= {key: kept.get(key) for key in ("steps", "seconds", "rows", "final", "injection")}
        print(json.dumps(facts | {"outcomes": marks}))


def table(path: Path) -> None:
    """Percent right; in parentheses what injection changes, with a 95 % interval over items."""
    models = {row["model"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    columns = list(models["base"]["outcomes"])
    of = {
        (model, column): [int(mark) for mark in row["outcomes"][column]]
        for model, row in models.items()
        for column in columns
    }
    print("| | " + " | ".join(f"`{model}`" for model in models) + " |")
    print(f"|---|{'---:|' * len(models)}")
    for column in columns:
        cells = []
        for model in models:
            cell = f"{100 * np.mean(of[model, column]):.0f}"
            plain = model.replace("_injected", "")
            if plain != model:
                items = tuple(map(str, range(len(of[model, column]))))
                pair = [statistics.Outcomes(np.array([of[name, column]]), (0,), items) for name in (model, plain)]
                change = statistics.difference(pair[:1], pair[1:], statistics.Bootstrap(0.95, 4000, 0))
                low, high = 100 * (change.low or 0), 100 * (change.high or 0)
                cell += f" ({100 * change.estimate:+.0f}, {low:+.0f} to {high:+.0f})"
            cells.append(cell)
        print(f"| {column} ({len(of['base', column])}) | " + " | ".join(cells) + " |")


def main() -> None:
    if sys.argv[1] == "--table":
        table(Path(sys.argv[2]))
        return
    project, *wheels = (Path(argument).resolve() for argument in sys.argv[1:])
    rows, texts = draw()
    train_and_benchmark(project, wheels, rows, texts)
    outcomes(project, rows)


if __name__ == "__main__":
    main()
