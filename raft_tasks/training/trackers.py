"""TensorBoard, MLflow and W&B: the Trainer's own integrations, switched on by name."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainingArguments

from raft_tasks.errors import InputError


def report_to(arguments: TrainingArguments, trackers: Sequence[str], folder: Path) -> None:
    """Have the Trainer send every row of steps.csv to `trackers` too.

    TensorBoard's files go to `folder`; the others have their own places and environment variables (MLFLOW_TRACKING_URI,
    WANDB_PROJECT, ...). The run is named after the last two parts of `folder`.

    Raises:
        InputError: before training, if a tracker's package is not installed.
    """
    missing = [name for name in trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"resources.trackers names {', '.join(missing)}, but no package of that name is installed. "
            f"pip install {' '.join(missing)}, or take the name from the list"
        )
    arguments.report_to = list(trackers)
    arguments.run_name = "/".join(folder.parts[-2:])
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)  # the integration knows no argument for it
