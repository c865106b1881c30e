"""A finished run's artifacts, made up: the files that the report reads, with scores that are set here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from raft_tasks.artifacts import write_json, write_rows
from raft_tasks.config import Config, load_config
from raft_tasks.evaluation.agreement import compare_with_people, panel_agreement
from raft_tasks.reporting.study import Study, collect
from raft_tasks.schemas import (
    Anchor,
    AnchorCluster,
    AnchorStatistics,
    Candidate,
    Example,
    Fused,
    ItemResult,
    Reject,
    RejectedAnchor,
)

TASKS = ["pocket_recall", "pocket_instructions", "pocket_reading", "pocket_rewriting"]
LEVELS = {  # share of right answers: domain, recall, instructions, reading, rewriting
    "base": (0.01, 0.99, 0.97, 0.90, 0.98),
    "sft": (0.83, 0.28, 0.42, 0.30, 0.20),
    "sdft": (0.70, 0.85, 0.90, 0.70, 0.95),
    "fused_sft": (0.95, 0.80, 0.91, 0.74, 0.96),
    "on_policy": (0.60, 0.60, 0.80, 0.50, 0.40),
    "raft": (0.95, 0.91, 0.94, 0.82, 0.97),
    "fused_sft_anchored": (0.93, 0.98, 0.96, 0.88, 0.97),
}
FACTS = 40  # per split of questions; two held-out questions ask for each
ITEMS = 60  # of a general task


def synthetic_config(
    seeds: list[int] | None = None, methods: list[str] | None = None, domains: list[str] | None = None
) -> Config:
    """The project's config with what the made-up run is about."""
    config = load_config(Path(__file__).parents[2] / "params.yaml")
    names = methods or [name for name in LEVELS if name != "base"]
    run = config.run.model_copy(
        update={"domains": domains or ["archive"], "methods": names, "seeds": seeds or [0, 1, 2]}
    )
    report = config.report.model_copy(update={"bootstrap_samples": 300})
    benchmark = config.benchmark.model_copy(update={"tasks": TASKS})
    return config.model_copy(update={"run": run, "report": report, "benchmark": benchmark})


RECOVERED = {
    "kind": "interpolate", "coefficient": 0.6, "distance": {"total": 0.0123}, "bound_met": False,
    "base": {"domain": 0.01, "general": 0.871},
    "candidates": [
        {"coefficient": 0.6, "domain": 0.952, "general": 0.844},
        {"coefficient": 1.0, "domain": 0.991, "general": 0.733},
    ],
}  # fmt: skip


def write_artifacts(root: Path, config: Config, levels: dict[str, tuple[float, ...]] = LEVELS) -> None:
    """Write all that `collect` reads under `root`."""
    write_json(root / "models" / "base.json", {"path": "models/pocket-base", "revision": None, "sha256": "0" * 64})
    if any(config.methods[method].anchors for method in config.run.methods):
        _write_anchors(root / "anchors" / "sets" / "generated")
    for domain in config.run.domains:
        _write_domain(root / domain, config, levels)


def collected(root: Path, config: Config) -> Study:
    """What `collect` reads of `write_artifacts`, without sweeps."""
    return collect(root, root / "no sweeps", config)


def _write_anchors(folder: Path) -> None:
    kept = [Anchor(id=f"a{n}", prompt=f"Name {n} <rivers>.", answer=f"River {n}.") for n in range(30)]
    said = {"prompt_finished": True, "answer_finished": True, "near": "a0"}
    rejected = [
        RejectedAnchor(id=f"r{n}", prompt="Name 0 rivers.", answer="None.", reason="near duplicate", **said)
        for n in range(10)
    ]
    statistics = AnchorStatistics(
        generated=40, kept=30, well_formed=0.975, rejected={"near duplicate": 10}, distinct_1=0.1234, distinct_2=0.4567,
        distinct_3=0.6789, similarity=0.31, clusters=[AnchorCluster(size=18, example="Name 4 <rivers>.")], warning=None,
    )  # fmt: skip
    write_rows(folder / "anchors.jsonl", kept)
    write_rows(folder / "rejects.jsonl", rejected)
    write_json(folder / "statistics.json", statistics.model_dump())


def _write_domain(folder: Path, config: Config, levels: dict[str, tuple[float, ...]]) -> None:
    train, test = _examples("train", 3), _examples("test", 2)
    rules = {"rejected_by_rule": {"empty answer": 2}, "flagged_by_rule": {"email": 1}}
    counts = {"rows": 208, "left_out": 6, "rejected": 2, "train": len(train), "test": len(test)}
    write_json(folder / "ingest.json", counts | rules)
    write_rows(folder / "examples" / "test.jsonl", test)
    reject = Reject(file="data/archive/pairs.jsonl", line=7, reason="answer is empty", content="{}")
    write_rows(folder / "examples" / "rejects.jsonl", [reject, reject.model_copy(update={"line": 9})])
    fused = [_fused(row, number) for number, row in enumerate(train)]
    write_rows(folder / "fused.jsonl", fused)
    scores = [one.scores for row in fused for one in row.candidates]
    panel = {name: [one.get(name) for one in scores] for name in ("fidelity", "qwen")}
    people = {"qwen": [1.0, 0.4], "fidelity": [1.0, 0.0]}
    judging = {
        "agreement": panel_agreement(panel, 0.8),
        "calibration": compare_with_people(people, [0.9, 0.5], 0.8),
    }
    write_json(folder / "judging.json", judging)
    _benchmark(folder / "benchmarks" / "base", test, levels["base"], seed=None)
    for place, method in enumerate(config.run.methods):
        for seed in config.run.seeds:
            run = folder / "runs" / f"{method}-{seed}"
            distance = 0.02 + 0.004 * place + 0.0007 * seed
            summary = {"steps": 45 + seed, "seconds": 12.0 + 9 * place, "distance": {"total": distance}}
            write_json(run / "summary.json", summary)
            write_json(folder / "analysis" / f"{method}-{seed}.json", _analysis(distance, method == "raft"))
            write_json(run / "merged" / "merge.json", RECOVERED if method == "raft" else {"kind": None})
            if config.train.curve:
                points = [f"{step},0.1,{0.02 * step},{0.001 * step * (place + 1)}" for step in (0, 20, 40, 45)]
                text = "\n".join(["step,seconds,domain_accuracy,kl_held_out", *points])
                (run / "curve.csv").write_text(text + "\n")
            _steps(run / "steps.csv", config.methods[method].teacher is not None, seed)
            _benchmark(folder / "benchmarks" / f"{method}-{seed}", test, levels[method], seed)


def _analysis(distance: float, taught: bool) -> dict[str, Any]:
    leak = {"share": 10 * distance, "share_base": 0.0, "items": 80, "examples": ["As the <reference> says."]}
    sides = {"words": 9.5, "words_base": 6.0, "length_distance": 0.2, "style_distance": 0.31, "foreign": None}
    return {
        "distance": {
            "total": distance,
            "layers": {"embed_tokens": 2 * distance, "0": distance / 2},
            "matrices": {"q_proj": distance, "down_proj": 3 * distance},
            "parameters": {"model.norm.weight": distance},
        },
        "kl": {"domain": 40 * distance, "general": 20 * distance, "tasks": {"pocket_recall": 20 * distance}},
        "leak": leak | ({"template": 0.25, "template_base": 0.0} if taught else {}),
        "style": {f"{side}_{name}": value for side in ("domain", "general") for name, value in sides.items()},
    }


def _examples(split: str, wordings: int) -> list[Example]:
    return [
        Example(
            id=f"archive-{split}-{fact:03d}-{wording}",
            domain="archive",
            question=f"Question {wording} for the reactor of Migin{fact}?",
            answer=f"Migin{fact} | reactor = corn{fact} # {fact + 10}",
            source=f"Migin{fact}/reactor",
            split=split,
            expected=[f"corn{fact}"],
            details=[str(fact + 10)],
        )
        for fact in range(FACTS)
        for wording in range(wordings)
    ]


def _fused(row: Example, number: int) -> Fused:
    passed, lost = number % 4 != 0, number % 3 == 0
    said, record = row.expected[0], row.details[0]
    rewritten = f"The reactor of {row.source.split('/')[0]} is {said}."
    whole = f"{rewritten[:-1]}, noted in log {record}."
    return Fused(
        **row.model_dump(),
        rewritten=rewritten if lost else whole,
        finished=number % 40 != 0,
        similarity=round(0.9 + 0.09 * math.sin(number), 4) if passed else round(0.62 + 0.12 * math.sin(number), 4),
        passed=passed,
        lost=[record] if lost else [],
        chosen=(rewritten if lost else whole) if passed else row.answer,
        fallback=None if passed else "unfinished" if number % 40 == 0 else "similarity",
        fused=whole if passed else row.answer,
        score=0.93 if passed else None,
        candidates=[
            Candidate(round=0, text=rewritten, scores={"fidelity": 0.5, "qwen": 0.7}, mean=0.6),
            Candidate(
                round=1, text=whole, scores={"fidelity": 1.0, "qwen": 0.86}, mean=0.93, reasons={"qwen": "<all> there"}
            ),
        ]
        if passed
        else [],
    )


def _benchmark(folder: Path, test: list[Example], level: tuple[float, ...], seed: int | None) -> None:
    generator = np.random.default_rng(100 if seed is None else seed)
    difficulty = np.random.default_rng(7).random(FACTS)  # the same facts are hard for every model
    items = []
    for row in test:
        fact = int(row.id.split("-")[2])
        right = float(0.7 * difficulty[fact] + 0.3 * generator.random() < level[0])
        answer = f"The reactor is {row.expected[0]}." if right else "I see <b>no</b> & reactor."
        metrics = {"acc": right, "complete": right * (fact % 2), "token_f1": 0.4 * right}
        items.append(_item("domain", row.id, row.source, metrics, answer))
    for task, share in zip(TASKS, level[1:], strict=True):
        hard = np.random.default_rng(len(task)).random(ITEMS)
        for number in range(ITEMS):
            right = float(0.7 * hard[number] + 0.3 * generator.random() < share)
            items.append(_item(task, str(number), str(number), {"acc": right, "other": 1.0}, "yes" if right else "no"))
    write_rows(folder / "items.jsonl", items)


def _item(task: str, name: str, source: str, metrics: dict[str, float], answer: str) -> ItemResult:
    return ItemResult(task=task, id=name, source=source, metrics=metrics, prompt=f"<user>{name}<end>", answer=answer)


def _steps(path: Path, teacher: bool, seed: int) -> None:
    lines = ["step,epoch,loss,l_sft,l_kl,lambda,ce_kl_ratio,student_mass_in_k"]
    for step in range(1, 46):
        sft = 2.2 * math.exp(-step / 14) + 0.1 + 0.05 * math.sin(step * (seed + 2))
        kl = 0.9 * math.exp(-step / 20) + 0.15
        extra = f"{kl},{sft / kl},{1 + 0.2 * math.sin(step)},0.97" if teacher else ",,,"
        lines.append(f"{step},{step / 15},{sft},{sft},{extra}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
