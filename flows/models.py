"""Stage `models`: writes down what every model is, so that a changed model re-runs what uses it.

And of every method what `fuse` and `anchors` prepare for it, so that its other keys do not concern them.
"""

from pathlib import Path

from prefect import flow

from flows import paths
from raft_tasks.artifacts import atomic_folder, write_json
from raft_tasks.config import load_config
from raft_tasks.models import identify


@flow
def models() -> None:
    config = load_config()
    with atomic_folder(Path("artifacts/models")) as folder:
        for role, model in config.models.items():
            write_json(folder / f"{role}.json", identify(role, model))
    with atomic_folder(paths.METHODS) as folder:
        for name in config.run.methods:
            method = config.methods[name]
            write_json(folder / f"{name}.json", method.model_dump(include={"target", "replay", "anchors"}))
