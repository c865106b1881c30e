"""Stage `report`: every model's scores, side by side, with intervals: report.html, report.md and metrics.json."""

from prefect import flow

from flows import paths
from raft_tasks.artifacts import write_json
from raft_tasks.config import load_config
from raft_tasks.report import report_run


@flow
def report() -> None:
    page, summary = paths.REPORTS / "report.html", paths.REPORTS / "report.md"
    metrics = report_run(load_config(), paths.ARTIFACTS, paths.SWEEPS, paths.LOCK, page, summary)
    write_json(paths.REPORTS / "metrics.json", metrics)
