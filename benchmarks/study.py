"""Studies on the pocket worlds: many trainings, each with the outcome of every item, resumable at any point.

    python benchmarks/study.py run anchors       trains what benchmarks/studies/anchors.jsonl does not hold yet
    python benchmarks/study.py plan anchors      what there is to do

A study is benchmarks/studies/NAME.yaml: what is set, arms (a row of params.yaml's methods and what it sets) and runs
(worlds x domains x arms x learning rates x epochs x seeds, in the order of their importance). Every training adds one
line to NAME.jsonl, written when it is measured; a killed study goes on with the next one, and processes side by side
share the work. Whatever is made on the way (rows, refined answers, anchors) is kept in .cache/study. Each training runs
in a process of its own; `cpu_seconds` and `peak_bytes` are that process's, with loading and merging, without measuring.

Beside the demo's benchmarks every model is asked two more things that its domain's training may cost:

    domain_instructions   a question about a fact of the domain, with a constraint on the form of the answer
    skills                the first or the last word of some words; a sentence in upper or lower case
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import pickle
import random
import resource
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from study_world import EXTRA, KEPT_WORK, WORLDS, domain_tasks, examples_of, made_once, rows_of, world_folder

from pocket_world.recipe import load_recipe
from pocket_world.world import World, build_world
from raft_tasks.artifacts import digest, read_rows, write_rows
from raft_tasks.benchmark import write_merged
from raft_tasks.config import AnchorSet, Config, Method, parse_config, read_document, resolved
from raft_tasks.distill import with_mixed_targets
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.fuse import document_pairs
from raft_tasks.generation.anchor_cleaning import Cleaning, clean_anchors
from raft_tasks.generation.anchors import answer_turns, generate_anchors
from raft_tasks.generation.encoding import shared_encoder
from raft_tasks.generation.fusing import fuse
from raft_tasks.generation.judges import build_panel
from raft_tasks.generation.rewriting import rewrite
from raft_tasks.generation.semantic_filter import semantic_filter
from raft_tasks.generation.templates import template_text
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.model_loading import load_model
from raft_tasks.schemas import Anchor, Example, Filtered, Fused, GeneratedAnchor, TrainingPair, UserTurn
from raft_tasks.training.anchor_logits import LOGITS, ROWS, AnchorLogits, encode_anchors, is_encodable
from raft_tasks.training.conversations import Encoder
from raft_tasks.training.injection import inject
from raft_tasks.training.job import CurveInputs, TrainingJob
from raft_tasks.training.train import train_model

STUDIES = Path(__file__).parent / "studies"


class Cell(NamedTuple):
    """One training. `arm` None is the base, which is only measured."""

    world: str
    domain: str
    arm: str | None
    rate: float
    epochs: int
    seed: int

    @property
    def key(self) -> str:
        if self.arm is None:
            return f"{self.world}/{self.domain}/base"
        return f"{self.world}/{self.domain}/{self.arm}/rate={self.rate:g}/epochs={self.epochs}/{self.seed}"


def cells_of(study: dict[str, Any]) -> list[Cell]:
    """Every training of the study once, in order, each world and domain's base first."""
    found: dict[Cell, None] = {}
    for run in study["runs"]:
        for seed in run["seeds"]:
            for world in run["worlds"]:
                for domain in run["domains"]:
                    found[Cell(world, domain, None, 0.0, 0, 0)] = None
                    for rate in run["rates"]:
                        for arm in run["arms"]:
                            epochs = study["arms"][arm].get("epochs", run["epochs"])
                            found[Cell(world, domain, arm, rate, epochs, seed)] = None
    return list(found)


def config_of(study: dict[str, Any], cell: Cell) -> Config:
    """params.yaml with what the world, the arm and the cell set."""
    document = read_document()
    arm = {} if cell.arm is None else study["arms"][cell.arm]
    changes = {
        "models.base.path": load_recipe(WORLDS[cell.world]).backbone.folder,
        **study["set"],
        **arm.get("set", {}),
    }
    if cell.arm is not None:
        changes |= {"train.learning_rate": cell.rate, "train.epochs": cell.epochs}
    for key, value in changes.items():
        *parts, last = key.split(".")
        place = document
        for part in parts:
            place[part] = dict(place.get(part, {}))  # a row that YAML shares between methods is one object
            place = place[part]
        place[last] = value
    return parse_config(document)


def refine(config: Config, rows: Path, name: str) -> list[Fused]:
    """The domain's training rows, rewritten, filtered and fused as params.yaml says (Eqs. 1-4)."""
    examples = [Example(**row, domain=name) for row in map(json.loads, rows.read_text().splitlines())]
    train = [row for row in examples if row.split == "train"]
    folder_name = rows.with_name(
        f"{name}-{digest([resolved(config.base), config.rewrite, config.semantic_filter, config.fuse])[:12]}"
    )
    with made_once(folder_name) as folder:
        if folder is not None:
            backend = TransformersBackend(config.base)
            encoder = shared_encoder(config.semantic_filter.encoder, config.semantic_filter.revision)
            rewritten = rewrite(train, backend, config.rewrite)
            pairs = [(row.answer, row.rewritten) for row in rewritten]
            near = encoder.similarities(pairs, config.semantic_filter.batch_size)
            settings = config.semantic_filter
            passed: list[Filtered] = semantic_filter(rewritten, near, settings.tau, settings.fidelity_veto)
            panel = build_panel(config.fuse, encoder, backend, {})
            write_rows(folder / "fused.jsonl", fuse(passed, backend, panel, config.fuse))
    return read_rows(folder_name / "fused.jsonl", Fused)


def anchor_set(config: Config, settings: AnchorSet, kind: str, world: World, place: Path, domain: str) -> Path:
    """The folder of an anchor set, as the stage `anchors` would write it.

    kind: invented          by the base
          no_facts          invented, without those that name anything of the general facts (entity or attribute)
          no_named_facts    invented, without those about an entity whose facts are measured
          gibberish         the same number of turns of words at random, answered by the base
    """
    target = place / f"anchors-{kind}-{digest([resolved(config.base), settings, domain])[:12]}"
    with made_once(target) as folder:
        if folder is not None:
            backend = TransformersBackend(config.base)
            if kind == "gibberish":
                drawn = answer_turns(gibberish(backend.tokenizer, settings.count), backend, settings)
            else:
                drawn = generate_anchors(range(settings.count), backend, settings)
            kept = clean(drawn, config, settings, place, domain)
            kept = [row for row in kept if not tells(row, kind, world)]
            network, tokenizer = load_model(config.base, getattr(torch, config.base.dtype))
            write_rows(folder / ROWS, kept)
            encoded = encode_anchors(kept, anchor_encoder(config, network, tokenizer))
            AnchorLogits.compute(network, encoded, settings.top_k, settings.batch_size).save(folder / LOGITS)
    return target


def anchor_encoder(config: Config, network: Any, tokenizer: Any) -> Encoder:
    base = config.base
    return Encoder(tokenizer, network.config.max_position_embeddings, system=base.system, thinking=base.thinking)


def clean(
    drawn: Sequence[GeneratedAnchor], config: Config, settings: AnchorSet, place: Path, domain: str
) -> list[Anchor]:
    held_out = [row["question"] for row in rows_of(place / f"{domain}.jsonl") if row["split"] != "train"]
    for path in place.glob("tasks/*/*.jsonl"):
        held_out += [row["question"] for row in rows_of(path)]
    network, tokenizer = load_model(config.base, getattr(torch, config.base.dtype))
    fits = partial(is_encodable, encoder=anchor_encoder(config, network, tokenizer))
    kept, _, statistics = clean_anchors(drawn, Cleaning(settings, held_out, is_encodable=fits))
    print(f"anchors: {statistics.kept} of {statistics.generated} kept, {statistics.rejected}", flush=True)
    return kept


def gibberish(tokenizer: Any, count: int) -> list[UserTurn]:
    rng = random.Random("gibberish")
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii())
    return [
        UserTurn(id=f"anchor-{n:05d}", prompt=" ".join(rng.choices(words, k=rng.randint(4, 12)))) for n in range(count)
    ]


def tells(row: Anchor, kind: str, world: World) -> bool:
    names = {"no_named_facts": {fact.entity for fact in world.general}}
    names["no_facts"] = {*names["no_named_facts"], *(fact.attribute for fact in world.general)}
    text = f"{row.prompt} {row.answer}".casefold()
    return any(name.casefold() in text for name in names.get(kind, ()))


def is_asked(source: str, share: float) -> bool:
    """Whether a fact is among the `share` that an arm's rows ask for; the others stand in the documents alone."""
    return int(digest([source])[:8], 16) < share * 16**8


def documents_of(rows: Iterable[Example]) -> list[tuple[str, str]]:
    """A text an entity: what the references say of it, a line a fact."""
    lines: dict[str, dict[str, None]] = {}
    for row in rows:
        lines.setdefault(row.source.partition("/")[0], {})[row.answer] = None
    return [(name, "\n".join(facts)) for name, facts in lines.items()]


def pairs_of(fused: Iterable[Fused], method: Method, replay: Path | None) -> list[TrainingPair]:
    answer_of = {"reference": lambda row: row.answer, "rewrite": lambda row: row.chosen, "fused": lambda row: row.fused}
    pairs = [
        TrainingPair(
            id=row.id,
            question=row.question,
            answer=answer_of[method.target](row),
            expected=row.expected if method.mixing else [],
        )
        for row in fused
    ]
    if replay is not None:
        pairs += [TrainingPair(**row, replay=True) for row in rows_of(replay)]
    return pairs


def prepared(study: dict[str, Any], cell: Cell) -> tuple[list[Fused], Path | None, CurveInputs | None]:
    """The domain's refined answers, the arm's anchors, its curve's inputs: made once for all cells that share them."""
    config, arm, place = config_of(study, cell), study["arms"][cell.arm], world_folder(cell.world)
    fused = refine(config, place / f"{cell.domain}.jsonl", cell.domain)
    world, learned, curve = build_world(load_recipe(WORLDS[cell.world]).world), None, None
    if held := config.methods[arm["method"]].anchors:
        kind = arm.get("anchors", "invented")
        learned = anchor_set(config, config.anchors[held.set], kind, world, place, cell.domain)
    if config.train.curve:
        validation = [row for row in examples_of(place, cell.domain) if row.split == "validation"]
        sets = {
            name: anchor_set(config, config.anchors[name], "invented", world, place, cell.domain)
            for name in config.train.curve.sets
        }
        curve = CurveInputs(validation, sets)
    return fused, learned, curve


def train(study: dict[str, Any], cell: Cell, work: Path) -> tuple[Path, dict[str, Any]]:
    """Train the cell's model in `work`; its folder and the facts of the training."""
    inputs, _ = in_child(prepared, study, cell)
    (model, facts), usage = in_child(train_alone, study, cell, work, *inputs)
    return model, facts | {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * 1024}


def in_child(function: Callable[..., Any], *arguments: Any) -> tuple[Any, resource.struct_rusage]:
    """What the function returns in a process of its own, and what that process took."""
    with tempfile.NamedTemporaryFile() as answer:
        if (child := os.fork()) == 0:
            try:
                Path(answer.name).write_bytes(pickle.dumps(function(*arguments)))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status, usage = os.wait4(child, 0)
        if status:
            raise SystemExit(f"{function.__name__} failed: its error stands above")
        return pickle.loads(answer.read()), usage


def train_alone(
    study: dict[str, Any],
    cell: Cell,
    work: Path,
    fused: list[Fused],
    anchors: Path | None,
    curve: CurveInputs | None,
) -> tuple[Path, dict[str, Any]]:
    config, arm, place = config_of(study, cell), study["arms"][cell.arm], world_folder(cell.world)
    method = config.methods[arm["method"]]
    shown = method.distillation or method.mixing
    fused = [row for row in fused if is_asked(row.source, arm.get("asked", 1.0))]
    documents = documents_of(examples_of(place, cell.domain))
    job = TrainingJob(
        documents=list(document_pairs(documents, method.injection)) if method.injection else [],
        pairs=pairs_of(fused, method, place / "replay.jsonl" if method.replay else None),
        model=config.base,
        method=method,
        train=config.train,
        template_text=template_text(shown.template) if shown else "",
        seed=cell.seed,
        output=work,
        checkpoints=work / "checkpoints",
        anchors=anchors,
        curve=curve,
    )
    job = with_mixed_targets(job, {"base": config.base.path}, lambda *_: None)
    summary = train_model(inject(job, train_model))
    assert summary is not None
    told = ("seconds", "steps", "rows", "final", "distance", "curve", "injection")
    facts: dict[str, Any] = {key: value for key, value in summary.items() if key in told}
    if curve:
        with (work / "curve.csv").open(encoding="utf-8", newline="") as table:
            rows = list(csv.DictReader(table))
        facts["path"] = [{key: round(float(value), 4) for key, value in row.items()} for row in rows]
    if method.merge is None:
        return work / "model", facts
    validation = suite_of(study, cell, "validation")
    (work / "merged").mkdir()
    merge = write_merged(work / "model", config.base, method.merge, validation, work / "merged", lambda *_: None)
    return work / "merged/model", {**facts, "after": merge}


def suite_of(study: dict[str, Any], cell: Cell, split: str) -> Suite:
    """The domain's rows of a split, the benchmark's tasks and the study's own."""
    place, benchmark = world_folder(cell.world), config_of(study, cell).benchmark
    rows = [row for row in examples_of(place, cell.domain) if row.split == split]
    settings = benchmark.model_copy(update={"tasks": [*benchmark.tasks, *EXTRA]})
    return Suite(cell.domain, rows, settings, domain_tasks(place, cell.domain))


def measure(study: dict[str, Any], cell: Cell, model: Path | None) -> dict[str, Any]:
    """Score and outcome ("1" right, "0" wrong, in the items' order) of every task; of the base, the sources too."""
    base = config_of(study, cell).base
    if model is not None:
        base = base.model_copy(update={"path": str(model)})
    outcomes: dict[str, str] = {}
    sources: dict[str, list[str]] = {}
    for item in evaluate(base, suite_of(study, cell, "test"))[1]:
        name = item.task.removeprefix("pocket_")
        outcomes[name] = outcomes.get(name, "") + str(int(item.metrics["acc"]))
        sources.setdefault(name, []).append(item.source)
    scores = {name: round(marks.count("1") / len(marks), 4) for name, marks in outcomes.items()}
    return {"scores": scores, "outcomes": outcomes, **({"sources": sources} if model is None else {})}


def results_of(name: str) -> dict[str, dict[str, Any]]:
    """Every line of NAME.jsonl by its cell's key."""
    path = STUDIES / f"{name}.jsonl"
    return {row["cell"]: row for row in rows_of(path)} if path.exists() else {}


@contextmanager
def claimed(name: str, cell: Cell) -> Iterator[bool]:
    """Whether this process may do the cell: no other one is at it, and it is not done. A kill frees it."""
    path = KEPT_WORK / "claims" / digest([name, cell.key])[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield cell.key not in results_of(name)


def run(name: str) -> None:
    study = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
    for cell in cells_of(study):
        with claimed(name, cell) as free:
            if free:
                began = time.monotonic()
                with tempfile.TemporaryDirectory() as folder:
                    model, facts = (None, {}) if cell.arm is None else train(study, cell, Path(folder))
                    found, _ = in_child(measure, study, cell, model)
                line = json.dumps({"cell": cell.key, **cell._asdict(), **facts, **found}) + "\n"
                with (STUDIES / f"{name}.jsonl").open("a", encoding="utf-8") as out:
                    out.write(line)
                    out.flush()
                    os.fsync(out.fileno())
                print(f"{cell.key}: {found['scores']} ({time.monotonic() - began:.0f} s)", flush=True)


def plan(name: str) -> None:
    study = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
    cells, done = cells_of(study), results_of(name)
    for cell in cells:
        config_of(study, cell)
    missing = [cell.key for cell in cells if cell.key not in done]
    print(f"{len(cells)} cells, {len(missing)} to do", *missing, sep="\n  ")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a study on the pocket worlds.")
    parser.add_argument("what", choices=["run", "plan"])
    parser.add_argument("study", choices=sorted(path.stem for path in STUDIES.glob("*.yaml")))
    arguments = parser.parse_args()
    if arguments.what == "plan":
        plan(arguments.study)
    else:
        run(arguments.study)


if __name__ == "__main__":
    main()
