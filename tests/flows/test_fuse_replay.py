"""What `fuse` lets a method replay: no question that the domain holds out now."""

from raft_tasks.artifacts import write_rows
from raft_tasks.config import Replay
from raft_tasks.fuse import replay_pairs
from raft_tasks.schemas import HeldOut, TrainingPair

BEFORE = [{"role": "user", "content": "May I moor here?"}, {"role": "assistant", "content": "Only the owner may."}]
SYSTEM = [{"role": "system", "content": "Today is 2026-12-01."}]
PAIRS = [
    TrainingPair(id="a", question="What is the reactor of Figin?", answer="rope"),
    TrainingPair(id="b", question="What is the gauge of Tasin?", answer="lamp"),
    TrainingPair(id="c", question="And why?", answer="The quay is private."),
    TrainingPair(id="d", question="And why?", answer="The quay is private.", history=BEFORE),
]


def test_a_question_that_is_held_out_now_is_not_replayed(tmp_path, monkeypatch):
    """A follow-up question is held out behind its own history alone; what is left out is named by file and line."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "data/replay/production/archive.jsonl", PAIRS)
    write_rows(tmp_path / "data/replay/production/law.jsonl", PAIRS[1:2])
    held_out = [
        HeldOut(id="x", question="what is the GAUGE of Tasin", history=SYSTEM),
        HeldOut(id="y", question="And why?", history=BEFORE),
    ]
    replays = {files: Replay(files=files, share=0.1) for files in ("production", "domain")}
    left_out = []
    rows = {files: [row.id for row in replay_pairs(how, PAIRS, held_out, left_out)] for files, how in replays.items()}
    assert rows == {"production": ["a", "c"], "domain": ["a", "b", "c", "d"]}
    assert [(row.file, row.line, row.content, row.rule) for row in left_out] == [
        ("data/replay/production/archive.jsonl", 2, "b", "contamination"),
        ("data/replay/production/archive.jsonl", 4, "d", "contamination"),
        ("data/replay/production/law.jsonl", 1, "b", "contamination"),
    ]
