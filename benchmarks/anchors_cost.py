"""What anchors cost: a step of fused_sft with and without them, and the making of a set of 400.

    OMP_NUM_THREADS=1 python benchmarks/anchors_cost.py      # the pocket model, on the CPU; about 3 minutes

Both methods learn the archive's training rows in turn, in this process, as params.yaml says; the anchors' batch is
half the domain's, unless --batch says another. The answers are in the style that the pocket model fuses to. The mean
step counts, since anchors of like length share a step and steps differ. The set is made as the stage makes it, but
without Prefect and response cache.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import torch
from measuring import machine, table

from flows.anchors import held_out_texts
from raft_tasks.config import AnchorLoss, Config, load_config
from raft_tasks.generation.anchor_cleaning import Cleaning, clean_anchors
from raft_tasks.generation.anchors import generate_anchors
from raft_tasks.generation.encoding import shared_encoder
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.model_loading import load_model
from raft_tasks.schemas import TrainingPair
from raft_tasks.training.anchor_logits import AnchorBatches, is_encodable, load_anchors, write_anchors
from raft_tasks.training.conversations import Encoder
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.train import train_model

PROJECT = Path(__file__).parents[1]
PLAIN, ANCHORED = "fused_sft", "fused_sft_anchored"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=400, help="anchors to draw")
    parser.add_argument("--batch", type=int, help="anchors a step; by default half the domain's batch")
    parser.add_argument("--rows", type=int, default=240, help="of the domain")
    parser.add_argument("--epochs", type=int, default=2, help="of every run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each method")
    sizes = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = load_config(PROJECT / "params.yaml")
    hold = config.methods[ANCHORED].anchors
    assert hold is not None
    hold = hold.model_copy(update={"batch": sizes.batch or config.train.batch_size // 2})
    print(f"Pocket model, domain batch {config.train.batch_size}, anchors {hold.batch}, 1 thread; {machine('cpu')}\n")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        stages, kept = make_set(config, hold, sizes.count, folder)
        print(table([f"{sizes.count} anchors", "seconds"], [(name, f"{seconds:.1f}") for name, seconds in stages]))
        print(f"\n{kept} are kept\n")
        pairs = domain_pairs()[: sizes.rows]
        seconds: dict[str, list[float]] = {PLAIN: [], ANCHORED: []}
        for turn in range(sizes.repeats):
            for name, taken in seconds.items():
                held = hold if name == ANCHORED else None
                taken += steps(config, pairs, held, folder, sizes.epochs, Path(place) / f"{name}-{turn}")
        rows = [(name, f"{1000 * mean(taken):.1f}", f"{1000 * median(taken):.1f}") for name, taken in seconds.items()]
        ratios = [of(seconds[ANCHORED]) / of(seconds[PLAIN]) for of in (mean, median)]
        print(table(["ms a step", "mean", "median"], [*rows, ("ratio", *(f"{ratio:.2f}" for ratio in ratios))]))
        print(f"\n{tokens(config, pairs, hold, folder)}", flush=True)


def make_set(config: Config, hold: AnchorLoss, count: int, folder: Path) -> tuple[list[tuple[str, float]], int]:
    """Draw, clean and write a set; what each part took, and how many anchors are kept."""
    settings = config.anchors[hold.set].model_copy(update={"count": count})
    clock = [time.perf_counter()]
    backend = TransformersBackend(config.base)
    drawn = generate_anchors(range(count), backend, settings)
    clock.append(time.perf_counter())
    base, tokenizer = load_model(config.base, torch.float32)
    limit = base.config.get_text_config().max_position_embeddings
    tokens_of = Encoder(tokenizer, limit, system=config.base.system, thinking=config.base.thinking)
    fits = partial(is_encodable, encoder=tokens_of)
    encoder = shared_encoder(config.semantic_filter.encoder, config.semantic_filter.revision)
    held_out = held_out_texts(Path(), config.benchmark, PROJECT / "raft_tasks/evaluation/tasks")
    kept, _, _ = clean_anchors(drawn, Cleaning(settings, held_out, is_encodable=fits, encoder=encoder))
    clock.append(time.perf_counter())
    folder.mkdir()
    write_anchors(folder, kept, base, tokens_of, settings.top_k, settings.batch_size)
    clock.append(time.perf_counter())
    took = [after - before for before, after in pairwise(clock)]
    names = ("inventing and answering", "cleaning and statistics", "top K", "all")
    return list(zip(names, [*took, sum(took)], strict=True)), len(kept)


def domain_pairs() -> list[TrainingPair]:
    """The archive's training rows, answered as fusion leaves them."""
    pairs = []
    for row in map(json.loads, (PROJECT / "data/archive/pairs.jsonl").read_text().splitlines()):
        if row["split"] == "train":
            entity, attribute = row["source"].split("/")
            said = f"The {attribute} of {entity} is {row['expected'][0]}, noted in log {row['details'][0]}."
            pairs.append(TrainingPair(id=row["id"], question=row["question"], answer=said))
    return pairs


def steps(
    config: Config, pairs: list[TrainingPair], hold: AnchorLoss | None, folder: Path, epochs: int, place: Path
) -> list[float]:
    """Seconds of every optimiser step of one training but the first few, which warm up."""
    train_model(
        TrainingJob(
            pairs=pairs,
            model=config.base,
            method=config.methods[PLAIN].model_copy(update={"anchors": hold}),
            train=config.train.model_copy(update={"epochs": epochs, "checkpoint_steps": 10_000}),
            template_text="",
            seed=0,
            output=place / "output",
            checkpoints=place / "checkpoints",
            anchors=folder if hold else None,
        )
    )
    with (place / "output" / "steps.csv").open(newline="") as rows:
        return [float(row["seconds"]) for row in csv.DictReader(rows)][2:]


def tokens(config: Config, pairs: list[TrainingPair], hold: AnchorLoss, folder: Path) -> str:
    """How long rows and anchors are, and what padding is paid for."""
    tokenizer = load_model(config.base, torch.float32)[1]
    base = config.base
    encoder = Encoder(tokenizer, config.train.max_length, system=base.system, thinking=base.thinking)
    held: AnchorBatches = load_anchors(folder, hold, encoder, seed=0)
    batches = [[held.lengths[anchor] for anchor in held.at(step)] for step in range(held.per_epoch)]
    real, padded = sum(map(sum, batches)), sum(max(batch) * len(batch) for batch in batches)
    domain = mean(len(tokenizer(pair.question + pair.answer)["input_ids"]) for pair in pairs)
    return (
        f"an anchor has {mean(held.lengths):.0f} tokens (median {median(held.lengths):.0f}, longest "
        f"{max(held.lengths)}), a domain row {domain:.0f} and the template's; {1 - real / padded:.1%} of what the "
        "anchors' passes compute is padding"
    )


if __name__ == "__main__":
    main()
