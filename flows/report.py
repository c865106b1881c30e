"""Stage `report`: every model's scores, side by side, with intervals: report.html, report.md and metrics.json."""

from prefect import flow

from flows import paths
from raft_tasks.artifacts import write_json
from raft_tasks.config import load_config
from raft_tasks.reporting.measures import measure
from raft_tasks.reporting.origin import read_origin
from raft_tasks.reporting.report import write_report, write_summary
from raft_tasks.reporting.study import collect


@flow
def report() -> None:
    study = collect(paths.ARTIFACTS, paths.SWEEPS, load_config())
    metrics, origin = measure(study), read_origin(paths.LOCK)
    write_report(study, metrics, origin, paths.REPORTS / "report.html")
    write_summary(metrics, origin, paths.REPORTS / "report.md")
    write_json(paths.REPORTS / "metrics.json", metrics)
