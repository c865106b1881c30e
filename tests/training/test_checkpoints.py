import pytest

from raft_tasks.errors import InputError
from raft_tasks.training.checkpoints import last_complete, mark_complete


def write(folder, step, fingerprint="f", complete=True):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"x" * step)
    if complete:
        mark_complete(checkpoint, fingerprint, {"step": step})
    return checkpoint


def test_nothing_yet(tmp_path):
    assert last_complete(tmp_path, "f") is None


def test_newest_by_number_not_by_name(tmp_path):
    write(tmp_path, 9)
    newest = write(tmp_path, 10)
    assert last_complete(tmp_path, "f") == (newest, {"step": 10})


@pytest.mark.parametrize("damage", ["unmarked", "shortened", "missing", "half a mark"])
def test_incomplete_ones_are_removed_and_the_one_before_is_used(tmp_path, damage):
    good = write(tmp_path, 5)
    bad = write(tmp_path, 6, complete=damage != "unmarked")
    if damage == "shortened":
        (bad / "model.safetensors").write_bytes(b"x")
    if damage == "missing":
        (bad / "model.safetensors").unlink()
    if damage == "half a mark":
        (bad / "complete.json").write_text('{"fingerprint": "f", "sta')
    assert last_complete(tmp_path, "f") == (good, {"step": 5})
    assert not bad.exists()


def test_another_training_is_refused(tmp_path):
    write(tmp_path, 5, fingerprint="other")
    with pytest.raises(InputError, match="other data, settings or base weights"):
        last_complete(tmp_path, "f")
