"""Trainings one after another in the processes of one launch: starting Python with torch is what such tests cost.

Arguments: job files of `raft_tasks.training.launch`. A name that ends in -stopped is stopped at its third step.
"""

import sys
from pathlib import Path

from raft_tasks.artifacts import read_json, write_json
from raft_tasks.training.launch import Job
from raft_tasks.training.train import train_model
from raft_tasks.training.trainer import RaftTrainer


class Stop(Exception):
    pass


def stop_at_three(log):
    def stopping(self, *args, **kwargs):
        log(self, *args, **kwargs)
        if self.state.global_step == 3:
            raise Stop  # in every process

    return stopping


def main(paths):
    log = RaftTrainer.log
    for path in map(Path, paths):
        job = Job.model_validate(read_json(path), strict=False)
        RaftTrainer.log = stop_at_three(log) if path.stem.endswith("-stopped") else log
        try:
            summary = train_model(**dict(job))
        except Stop:
            continue
        if summary is not None:
            write_json(path.with_suffix(".summary.json"), summary)


if __name__ == "__main__":
    main(sys.argv[1:])
