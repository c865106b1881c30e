from contextlib import nullcontext

import pytest

from flows import pipeline
from flows.run import stale_stages
from flows.server import prefect_at

UPSTREAM = {
    "ingest": [],
    "rewrite": ["ingest"],
    "fuse": ["rewrite"],
    "models": [],
    "distill": ["fuse", "models"],
    "report": ["distill"],
}


def test_nothing_changed_means_nothing_to_run():
    assert stale_stages(UPSTREAM, set()) == []


def test_a_change_reaches_what_is_downstream_and_nothing_else():
    assert stale_stages(UPSTREAM, {"fuse"}) == ["fuse", "distill", "report"]
    assert stale_stages(UPSTREAM, {"models"}) == ["models", "distill", "report"]
    assert stale_stages(UPSTREAM, {"report"}) == ["report"]


class Worker:
    """Reproduces all but `first`, for which no process can be started; `third` is killed."""

    busy = False

    def __init__(self, environment):
        self.code = 0

    def reproduce(self, name):
        if name == "first":
            raise OSError("Cannot allocate memory")
        if name == "third":
            raise SystemExit("killed")
        yield f"{pipeline.DVC_RUNS}{name}"

    def interrupt(self):
        """Nothing runs."""

    def end(self, seconds):
        """Nothing runs."""


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["first", "second"], r"first was not run to its end: OSError: Cannot allocate memory$"),
        (["second", "third"], r"killed"),
    ],
)
def test_a_stage_that_ends_by_another_error_fails_the_pipeline(prefect_api, monkeypatch, capsys, stages, message):
    upstream = {stages[0]: [], stages[1]: [stages[0]], "other": []}
    monkeypatch.setattr(pipeline, "stage_graph", lambda config: (upstream, set(upstream)))
    monkeypatch.setattr(pipeline, "stage_host", lambda environment, _: nullcontext(environment))
    monkeypatch.setattr(pipeline, "DvcWorker", Worker)
    with prefect_at(prefect_api), pytest.raises((pipeline.StageFailed, SystemExit), match=message):
        pipeline.pipeline()
    shown = capsys.readouterr().out
    assert "other: ran in" in shown or "third" in stages  # which stops the pipeline, maybe before the other one starts
    assert ("second: ran in" in shown) == (stages[0] == "second")
