"""What `raft run` does: find out what is not up to date, and run the pipeline if something is.

Prefect is imported in that case alone: it would take as long as all the rest.
"""

import os
from collections.abc import Iterable

import networkx as nx
from dvc.repo import Repo

from flows import paths
from flows.doctor import check_before_run
from flows.resolve import resolve
from flows.server import Server
from flows.stage_host import HOST, stage_environment, stage_host
from raft_tasks.artifacts import read_json
from raft_tasks.config import Config, load_config
from raft_tasks.reporting.terminal import print_table

RESOLVE = "resolve"


def stage_graph(config: Config) -> tuple[dict[str, list[str]], set[str]]:
    """DVC's stages in topological order, each with what it waits for; and those whose own dependencies changed.

    Raises:
        InputError: a model, a template or a file that the config names is not there.
    """
    resolve(config)  # so that DVC compares with what holds now; RESOLVE itself runs where dvc.lock has not recorded it
    with Repo() as repo, repo.lock:
        graph: nx.DiGraph = repo.index.graph  # edges point from a stage to what it depends on
        order = list(nx.dfs_postorder_nodes(graph))
        upstream = {stage.addressing: [dep.addressing for dep in graph.successors(stage)] for stage in order}
        changed = {
            stage.addressing
            for stage in order
            if not stage.frozen and (stage.changed_outs() if stage.addressing == RESOLVE else stage.changed())
        }
    return upstream, changed


def stale_stages(upstream: dict[str, list[str]], changed: set[str]) -> list[str]:
    """The stages that may have to run, in order: the changed ones and all that is downstream of them.

    RESOLVE writes what was compared with already, so nothing is stale because it runs.
    """
    stale: list[str] = []
    for name, waits_for in upstream.items():
        if name in changed or any(dep in stale and dep != RESOLVE for dep in waits_for):
            stale.append(name)
    return stale


def host_stages(names: Iterable[str]) -> list[str]:
    """The arguments of `raft stage` among DVC's names."""
    stages = (name.partition("@")[0].removesuffix("_base").removesuffix("_champion") for name in names)
    return list(dict.fromkeys(stage for stage in stages if stage != RESOLVE))


def show_results() -> None:
    """Print the table of the report and where the page is."""
    metrics = paths.REPORTS / "metrics.json"
    if metrics.exists():
        print_table(read_json(metrics))
        print(f"The whole report: {(paths.REPORTS / 'report.html').resolve().as_uri()}")


def run_pipeline() -> None:
    """Run the pipeline if something is not up to date, then print the results; this is `raft run`."""
    config = load_config()
    check_before_run(config)
    upstream, changed = stage_graph(config)
    stale = stale_stages(upstream, changed)
    if not stale:
        print(f"Nothing to do: all {len(upstream)} stages are up to date.")
        show_results()
        return
    server = Server()  # it starts, and the stage host imports, while Prefect is imported here
    environment = stage_environment(server.url, config.resources.threads)
    with stage_host(environment, host_stages(stale)) as hosted:
        os.environ.update({HOST: hosted[HOST]} if HOST in hosted else {})
        from flows.pipeline import overhead, pipeline, serving

        with serving(server):
            ran = pipeline()
    show_results()
    print(f"Orchestration (Prefect, DVC, imports; no stage at work): {overhead(ran.work)}")
