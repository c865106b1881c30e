"""Which checkpoint a training may resume from: the last one that was written to its end, of the same training.

The Trainer writes a checkpoint file by file into `checkpoint-<step>`. When it is done, `mark_complete` adds
`complete.json` with the size of every file; a folder without it, or whose files differ from it, is incomplete.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from raft_tasks.artifacts import read_json, write_json
from raft_tasks.errors import InputError
from raft_tasks.training.distributed import gather_objects
from raft_tasks.training.step_metrics import COLUMNS, write_table

MARK = "complete.json"
MEGABYTE = 10**6


class CheckpointCallback(TrainerCallback):
    """Starts steps.csv with the rows of a resumed training; asks for checkpoints in time, and marks them complete."""

    def __init__(self, trainer: Any, minutes: float) -> None:
        self.trainer, self.seconds = trainer, 60 * minutes

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = time.monotonic()
        if args.should_save:
            write_table(self.trainer.steps_csv, COLUMNS, self.trainer.steps())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        waited = gather_objects([time.monotonic() - self.saved], args.world_size)[0]  # all processes save, or none
        if waited >= self.seconds:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()  # every process has written its part
        if args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mark_complete(folder, self.trainer.fingerprint, self.trainer.state_dict())
        self.saved = time.monotonic()


def write_error(folder: Path, error: Exception) -> InputError:
    """The error of a checkpoint that could not be written to `folder`: torch's own does not name a full disk."""
    free = shutil.disk_usage(folder).free / MEGABYTE
    return InputError(
        f"{folder}: a checkpoint could not be written ({error}); {free:.0f} MB are free there. Earlier ones are "
        "intact: make room and run the same command again"
    )


def mark_complete(checkpoint: Path, fingerprint: str, state: dict[str, Any]) -> None:
    """Declare that everything in `checkpoint` is written; keep `state` with it."""
    write_json(checkpoint / MARK, {"fingerprint": fingerprint, "state": state, "sizes": file_sizes(checkpoint)})


def last_complete(folder: Path, fingerprint: str) -> tuple[Path, dict[str, Any]] | None:
    """The newest complete checkpoint in `folder` and its state; incomplete ones are removed. None: start afresh.

    Raises:
        InputError: if a complete checkpoint comes from other data, settings or weights.
    """
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        mark = read_mark(checkpoint)
        if mark is None:
            shutil.rmtree(checkpoint)
        elif mark["fingerprint"] != fingerprint:
            raise InputError(
                f"{checkpoint} belongs to a training with other data, settings or base weights (its fingerprint is "
                f"{mark['fingerprint'][:12]}, this training's {fingerprint[:12]}). Delete {folder} to start afresh, or "
                "give this training a folder of its own"
            )
        else:
            complete.append((int(checkpoint.name.split("-")[1]), checkpoint, mark["state"]))
    return max(complete)[1:] if complete else None


def read_mark(checkpoint: Path) -> dict[str, Any] | None:
    """What `mark_complete` wrote, if the files are as they were then."""
    try:
        mark: dict[str, Any] = read_json(checkpoint / MARK)
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return mark if mark["sizes"] == file_sizes(checkpoint) else None


def file_sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARK
    }
