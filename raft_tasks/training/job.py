"""All that one training needs, in one object: what `train_model` takes, and the launcher writes for its processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from raft_tasks.artifacts import atomic_file
from raft_tasks.config import Method, Model, Train
from raft_tasks.schemas import TrainingPair


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, how, and where the result goes; equal jobs give equal models.

    `output` gets model/ (weights, of LoRA only the adapter; tokenizer, model card) and steps.csv.
    It is complete only when the training has returned.
    """

    pairs: list[TrainingPair]  # the questions and the answers that the method learns
    model: Model  # the base; student and teacher start as it
    method: Method
    train: Train
    template_text: str  # the answer-conditioned teacher's user turn, Jinja over `question` and `answer`
    seed: int  # of batch order, rollouts and dropout
    output: Path
    checkpoints: Path  # of this training alone; the caller removes it after success
    mixed: bool = False  # `pairs` are what the method's `mixing` makes of them
    anchors: Path | None = None  # folder of the set that the method names, if it names one
    trackers: tuple[str, ...] = ()  # names of `trackers.report_to`
    tracking: Path = Path()  # of TensorBoard's files, for this training alone; its last two parts name the run

    def save(self, path: Path) -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(_JSON.dump_json(self, indent=2))

    @staticmethod
    def load(path: Path) -> TrainingJob:
        """What `save` wrote.

        Raises:
            pydantic.ValidationError: a field is missing, unknown or of another type.
        """
        return _JSON.validate_json(path.read_bytes(), strict=False, extra="forbid")


_JSON = TypeAdapter(TrainingJob)
