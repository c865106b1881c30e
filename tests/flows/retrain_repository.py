"""A small repository with a pipeline, for the tests of the retrain service."""

from flows import checkout
from flows.checkout import git, update_checkout

GRAPH = """\
vars: [champions/domains.yaml]
stages:
  distill:
    cmd: mkdir -p artifacts/model && cat data/archive/*.jsonl > artifacts/model/weights
    deps: [data/archive]
    outs: [artifacts/model]
  benchmark_champion:
    matrix: {domain: "${champions}"}
    cmd: cp champions/${item.domain}/weights artifacts/champion
    deps: ["champions/${item.domain}"]
    outs: [artifacts/champion]
artifacts:
  raft-archive: {path: releases/archive, type: model}
"""


def commit_all(folder, message="change"):
    git("add", "--all", folder=folder)
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", message, folder=folder)


def prepared(repository, settings):
    return update_checkout(repository, checkout.origin(repository, settings), settings)


# --- the checkout
