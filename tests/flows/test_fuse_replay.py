"""What `fuse` lets a method replay: no question that the domain holds out now."""

from flows import paths
from flows.fuse import _replayed
from raft_tasks.artifacts import write_rows
from raft_tasks.config import Replay
from raft_tasks.schemas import HeldOut, TrainingPair

PAIRS = [
    TrainingPair(id="a", question="What is the reactor of Figin?", answer="rope"),
    TrainingPair(id="b", question="What is the gauge of Tasin?", answer="lamp"),
]


def test_a_question_that_is_held_out_now_is_not_replayed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "data/replay/production/archive.jsonl", PAIRS)
    write_rows(paths.held_out("archive"), [HeldOut(id="x", question="what is the GAUGE of Tasin")])
    replays = {files: Replay(files=files, share=0.1) for files in ("production", "domain")}
    left_out = []
    rows = {files: [row.id for row in _replayed("archive", how, PAIRS, left_out)] for files, how in replays.items()}
    assert rows == {"production": ["a"], "domain": ["a", "b"]}
    assert [(reject.line, reject.content, reject.rule) for reject in left_out] == [(2, "b", "contamination")]
