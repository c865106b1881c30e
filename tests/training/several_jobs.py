"""Trainings one after another in pairs of processes that are forked here: loading torch is what such tests cost.

Arguments: groups of job files of `raft_tasks.training.launch`, separated by `--`; every group gets a new pair. A name
that ends in -stopped is stopped at its third step.
"""

import multiprocessing
import os
import socket
import sys
from pathlib import Path

from raft_tasks.artifacts import write_json
from raft_tasks.training.job import TrainingJob
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


def work(rank, port, paths):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    log = RaftTrainer.log
    for path in map(Path, paths):
        RaftTrainer.log = stop_at_three(log) if path.stem.endswith("-stopped") else log
        try:
            summary = train_model(TrainingJob.load(path))
        except Stop:
            continue
        if summary is not None:
            write_json(path.with_suffix(".summary.json"), summary)


def main(arguments):
    groups = " ".join(arguments).split(" -- ")
    fork = multiprocessing.get_context("fork")
    for group in groups:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pair = [fork.Process(target=work, args=(rank, port, group.split())) for rank in (0, 1)]
        for process in pair:
            process.start()
        for process in pair:
            process.join()
        if any(process.exitcode for process in pair):
            sys.exit(f"processes ended with {[process.exitcode for process in pair]}")


if __name__ == "__main__":
    main(sys.argv[1:])
