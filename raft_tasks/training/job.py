"""All that one training needs, in one object: what `train_model` takes, and the launcher writes for its processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from raft_tasks.adapter_folder import find_adapter
from raft_tasks.artifacts import atomic_file, digest, digest_path
from raft_tasks.config import Check, Method, Model, Train
from raft_tasks.schemas import Example, TrainingPair


@dataclass(frozen=True)
class CurveInputs:
    """What the forgetting curve of a training is measured on: `train.curve`."""

    validation: list[Example]
    sets: dict[str, Path]  # folders of anchor sets, by name
    checks: dict[str, Check] = field(default_factory=dict)  # domains.NAME.checks, of an answer's accuracy

    @property
    def digest(self) -> str:
        sets = {name: digest_path(folder) for name, folder in self.sets.items()}
        return digest([self.validation, sets, self.checks])


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, how, and where the result goes; equal jobs give equal models.

    `output` gets model/ (weights, of LoRA only the adapter; tokenizer, model card), steps.csv and curve.csv.
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
    documents: list[TrainingPair] = field(default_factory=list)  # what the method's `injection` learns first
    injected: Path | None = None  # folder of `injection.inject`, with whose weights the student starts
    anchors: Path | None = None  # folder of the set that the method names, if it names one
    curve: CurveInputs | None = None  # exactly where `train.curve` is set
    trackers: tuple[str, ...] = ()  # names of `trackers.report_to`
    tracking: Path = Path()  # of TensorBoard's files, for this training alone; its last two parts name the run

    @property
    def input_digests(self) -> list[str]:
        """Of the curve's inputs and of the folder of the teacher's own adapter, where the training has them."""
        digests = [] if self.curve is None else [self.curve.digest]
        if self.method.distillation and self.method.distillation.teacher_adapter is not None:
            folder = Path(self.method.distillation.teacher_adapter)
            find_adapter(folder, "distillation.teacher_adapter")
            digests.append(digest_path(folder))
        return digests

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
