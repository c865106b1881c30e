from flows.run import stale_stages

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
