"""What production learned before: its answers to past questions, written where the next training replays them."""

from collections.abc import Collection
from pathlib import Path
from random import Random

from flows import paths
from raft_tasks.artifacts import read_rows, write_rows
from raft_tasks.config import PAST_ANSWERS, Config
from raft_tasks.generation.past_answers import answer_past
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.schemas import Example, TrainingPair, transcribe
from raft_tasks.seeds import derive_seed


def write_past_answers(config: Config, champions: Collection[str], past: dict[str, set[str]]) -> dict[str, str]:
    """Have each domain's model in production answer the questions that its domain had before this run's new data.

    Answers to questions that are no longer among the rows stay, as production gave them then. Nothing is done where no
    method of the run replays production.

    Args:
        champions: domains with a model in champions/.
        past: the training rows of each domain before, as JSON.

    Returns:
        What each domain's file holds, in words: right answers of the questions asked, and earlier ones that stay.
    """
    methods = [config.methods[name] for name in config.run.methods]
    if not any(method.replay and method.replay.files == "production" for method in methods):
        return {}
    held: dict[str, str] = {}
    limit, settings = config.retrain.past_questions, config.benchmark
    for domain in champions:
        rows = sorted(map(Example.model_validate_json, past[domain]), key=lambda row: row.id)
        file = Path(PAST_ANSWERS) / f"{domain}.jsonl"
        asked = {row.in_context for row in rows}
        earlier = read_rows(file, TrainingPair) if file.exists() else []
        gone = [row for row in earlier if transcribe(row.history, row.question) not in asked]
        generator = Random(derive_seed("past-questions", domain))
        drawn = generator.sample(rows, min(limit, len(rows)))
        model = config.base.at(paths.champion(domain))
        pairs, unfinished = answer_past(
            drawn, TransformersBackend(model), config.domains[domain].checks, settings.max_new_tokens,
            settings.batch_size,
        )  # fmt: skip
        stay = generator.sample(gone, min(len(gone), limit))
        kept = sorted(stay + pairs, key=lambda row: row.id)
        write_rows(file, kept)
        held[domain] = (
            f"production answers {len(pairs)} of {len(drawn)} past questions right, of {len(rows)} in all; "
            f"{len(stay)} of {len(gone)} answers stay whose questions are gone"
            + (f"; {unfinished} thoughts did not end" if config.base.thinking != "off" else "")
        )
    return held
