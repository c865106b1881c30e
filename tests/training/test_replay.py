"""General rows beside the domain's: which ones, with what weight, and what they leave alone."""

import pytest
import torch
import torch.nn.functional as F
from tiny import REPLAY, distillation, job, method, pairs, train

from raft_tasks import fuse
from raft_tasks.config import Replay
from raft_tasks.errors import InputError
from raft_tasks.schemas import TrainingPair
from raft_tasks.training.batches import replayed_rows
from raft_tasks.training.train import train_model

GENERAL = [
    TrainingPair(id=f"general-{n}", question=f"what is the {word} ?", answer=f"{word} .", replay=True)
    for n, word in enumerate(["rope", "lamp", "stone"])
]


def test_every_pass_takes_each_row_once_in_a_new_order():
    drawn = [row for step in range(9) for row in replayed_rows(6, 2, seed=3, step=step)]
    passes = [drawn[start : start + 6] for start in (0, 6, 12)]
    assert all(sorted(one) == list(range(6)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert drawn[:6] != [row for step in range(3) for row in replayed_rows(6, 2, seed=4, step=step)]
    assert sorted(replayed_rows(2, 5, seed=0, step=0)) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])  # few rows come often


@pytest.mark.parametrize("micro", [4, 1])
def test_the_gradient_is_that_of_the_weighed_sum(tiny_model, tmp_path, micro):
    """L = L_SFT + lambda L_KL + w L_replay with w = .2 / .8: against raft without replay plus the general row's own."""
    from trainer_runs import ROLLOUTS, make_trainer, moved, one_step

    row = method(target="fused", distillation=distillation(teacher="answer_conditioned", kl_weight=0.7))
    settings = train(micro_batch_size=micro)
    without = moved(make_trainer(tiny_model, tmp_path, row, settings, ROLLOUTS))
    rows = without.train_dataset[:4]
    plain_loss, plain = one_step(without, rows)

    with_replay = row.model_copy(update={"replay": REPLAY})
    trainer = moved(make_trainer(tiny_model, tmp_path, with_replay, settings, ROLLOUTS))
    general = without.train_dataset[7]
    trainer.replay = [general]
    loss, gradients = one_step(trainer, rows)
    assert trainer.metrics.replayed == [general]

    trainer.student.zero_grad()
    logits = trainer.student(input_ids=torch.tensor([general.prompt_ids + general.completion_ids])).logits[0]
    own = F.cross_entropy(logits[len(general.prompt_ids) - 1 : -1], torch.tensor(general.completion_ids))
    assert trainer.metrics.sums["l_replay"] == pytest.approx(own.item(), rel=1e-5)
    assert loss == pytest.approx(plain_loss + 0.25 * own.item(), rel=1e-5)
    copied = {name: value.clone() for name, value in gradients.items() if value is not None}
    own.backward()
    for name, parameter in trainer.student.named_parameters():
        assert torch.allclose(copied[name], plain[name] + 0.25 * parameter.grad, atol=2e-5), name


def test_a_training_with_replay_is_logged_apart_and_keeps_its_domain_steps(tiny_model, tmp_path):
    from trainer_runs import steps

    settings, rows = train(), [*pairs(), *GENERAL]
    replaying = method(replay=Replay(files=["data/replay/*.jsonl"], share=0.5))
    summary = train_model(job(tiny_model, tmp_path / "a", replaying, pairs=rows, train=settings))
    assert (summary["steps"], summary["rows"], summary["replay_rows"]) == (6, 12, 3)
    table = steps(tmp_path / "a")
    assert all(float(row["loss"]) == pytest.approx(float(row["l_sft"]) + float(row["l_replay"])) for row in table)
    assert float(table[-1]["l_replay"]) < float(table[0]["l_replay"])
    without = train_model(job(tiny_model, tmp_path / "b", "sft", train=settings))
    assert without["replay_rows"] == 0
    first = steps(tmp_path / "b")[0]
    assert first["l_replay"] == ""
    assert first["l_sft"] == table[0]["l_sft"]  # the same domain rows in the same step


def test_rows_and_method_must_agree(tiny_model, tmp_path):
    for row, rows in ((method(replay=REPLAY), pairs()), (method(), [*pairs(), *GENERAL])):
        with pytest.raises(InputError, match="expected some exactly where the method replays"):
            train_model(job(tiny_model, tmp_path, row, pairs=rows))


def test_rows_of_the_files_are_marked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "replay").mkdir(parents=True)
    for name in ("b", "a"):
        (tmp_path / "data" / "replay" / f"{name}.jsonl").write_text(
            f'{{"id": "{name}", "question": "what?", "answer": "{name}"}}\n'
        )
    found = list(fuse.replay_pairs(REPLAY, []))
    assert [(row.id, row.replay) for row in found] == [("a", True), ("b", True)]
    with pytest.raises(InputError, match=r"nothing matches 'data/none/\*'.*set the method's `replay` to null"):
        list(fuse.replay_pairs(Replay(files=["data/none/*"], share=0.5), []))
    (tmp_path / "data" / "replay" / "a.jsonl").write_text('{"id": "a", "question": "what?"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:1: not a TrainingPair row"):
        list(fuse.replay_pairs(REPLAY, []))


def test_the_domains_own_rows_once_more(tiny_model, tmp_path):
    replay = Replay(files="domain", share=0.3333)
    again = list(fuse.replay_pairs(replay, pairs()))
    assert again == [row.model_copy(update={"replay": True}) for row in pairs()]
    row = method(target="fused", replay=replay)
    rows = [*pairs(), *again]
    summary = train_model(job(tiny_model, tmp_path, row, pairs=rows))
    assert (summary["rows"], summary["replay_rows"], summary["steps"]) == (12, 12, 6)


def test_replay_needs_a_cross_entropy():
    with pytest.raises(ValueError, match="replay is a share of the cross-entropy"):
        method(sft=False, distillation=distillation(teacher="plain", kl_weight=1.0), replay=REPLAY)


def test_production_is_replayed_where_there_is_one(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    replay = Replay(files="production", share=0.02)
    assert list(fuse.replay_pairs(replay, pairs())) == []
    row = method(target="fused", replay=replay)
    first = train_model(job(tiny_model, tmp_path / "first", row))
    plain = train_model(job(tiny_model, tmp_path / "plain", method(target="fused")))
    assert (first["replay_rows"], first["final"]["l_replay"]) == (0, None)
    assert first["final"]["l_sft"] == plain["final"]["l_sft"]
    file = tmp_path / "data/replay/production/archive.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"id": "a", "question": "what is the lamp ?", "answer": "lamp ."}\n')
    replayed = list(fuse.replay_pairs(replay, pairs()))
    assert [(pair.id, pair.replay) for pair in replayed] == [("a", True)]
    later = train_model(job(tiny_model, tmp_path / "later", row, pairs=[*pairs(), *GENERAL]))
    assert later["replay_rows"] == 3
    assert later["final"]["l_replay"] > 0
