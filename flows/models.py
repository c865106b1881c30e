"""Stage `models`: writes down what every model is, so that a changed model re-runs what uses it.

And of every method what `fuse` and `anchors` prepare for it, so that its other keys do not concern them.
"""

from pathlib import Path

from prefect import flow

from flows import paths
from flows.stage import main
from raft_tasks.artifacts import atomic_folder, write_json
from raft_tasks.models import identify
from raft_tasks.params import load_params


@flow
def models() -> None:
    params = load_params()
    with atomic_folder(Path("artifacts/models")) as folder:
        for role, model in params.models.items():
            write_json(folder / f"{role}.json", identify(role, model))
    with atomic_folder(paths.METHODS) as folder:
        for name in params.run.methods:
            method = params.methods[name]
            write_json(folder / f"{name}.json", method.model_dump(include={"answers", "replay", "anchors"}))


if __name__ == "__main__":
    main(models)
