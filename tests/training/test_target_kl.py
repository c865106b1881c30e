"""The rivals that change the cross-entropy's pass, ASFT and TALR: their loss and gradient against plain rewrites."""

import pytest
import torch
import torch.nn.functional as F
from tiny import TEACHER, job, method, pairs, train
from trainer_runs import Stop, make_trainer, moved, numbers, one_step, run, same_weights, steps, stop_at

from raft_tasks.config import TargetKl
from raft_tasks.model_loading import load_model
from raft_tasks.training.anchor_logits import TargetLogits
from raft_tasks.training.loss_terms import base_kl
from raft_tasks.training.losses import Head, chunked_mean_cross_entropy, chunked_top_k
from raft_tasks.training.plan import plan
from raft_tasks.training.token_weights import TALR_FLOOR, TOKEN_WEIGHTS

ASFT = method(token_weighting="dft", target_kl=TargetKl(weight=0.5, top_k=1000))
TALR = method(token_weighting="talr")


@pytest.mark.parametrize("k", [40, 7])
def test_asft_against_a_plain_rewrite(k):
    """L = mean(sg[p] (-log p)) + w mean KL(base || student), float64; on K tokens both are renormalised."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(40, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    base_hidden, base_weight = hidden.detach() + 0.3, weight.detach() * 1.1
    labels = torch.randint(40, (9,), generator=generator)

    log_p, log_q = (hidden @ weight.T).log_softmax(-1), (base_hidden @ base_weight.T).log_softmax(-1)
    at = log_p.gather(-1, labels[:, None]).squeeze(-1)
    ids = log_q.topk(k).indices
    p, q = log_p.gather(-1, ids).log_softmax(-1), log_q.gather(-1, ids).log_softmax(-1)
    expected = (-(at.exp().detach() * at).sum() + 0.05 * F.kl_div(p, q, log_target=True, reduction="sum")) / 11
    grads = torch.autograd.grad(expected, (hidden, weight))

    base = chunked_top_k(base_hidden, Head(base_weight), k)
    loss = chunked_mean_cross_entropy(hidden, Head(weight), labels, 11, TOKEN_WEIGHTS["dft"])[0]
    loss = loss + 0.05 * base_kl(hidden, Head(weight), base, 11)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    for got, wanted in zip(torch.autograd.grad(loss, (hidden, weight)), grads, strict=True):
        assert torch.allclose(got, wanted, atol=1e-9)


def plain_losses(student, rows):
    """Cross-entropy per token of each row."""
    for row in rows:
        logits = student(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
        logits = logits[len(row.prompt_ids) - 1 : -1]
        yield logits, F.cross_entropy(logits, torch.tensor(row.completion_ids), reduction="none")


@pytest.mark.parametrize("micro", [4, 2])
@pytest.mark.parametrize("row", [ASFT, TALR], ids=["asft", "talr"])
def test_one_step_against_a_plain_rewrite(tiny_model, tmp_path, row, micro):
    """Whatever the micro-batches: the median under TALR is of the whole step."""
    trainer = moved(make_trainer(tiny_model, tmp_path, row, train(micro_batch_size=micro), []))
    base, plain = (load_model(tiny_model, torch.float32)[0] for _ in range(2))
    plain.load_state_dict(trainer.student.state_dict())
    rows = trainer.rows[:4]
    losses = [*plain_losses(plain, rows)]
    count = sum(len(loss) for _, loss in losses)
    if row is ASFT:
        trainer.target_logits = TargetLogits(base, trainer.rows, row.target_kl, 3)
        with torch.no_grad():
            exact = [logits for logits, _ in plain_losses(base, rows)]
            of_base = [
                (logits - logits.amax(-1, keepdim=True)).half().float() for logits in exact
            ]  # as they are stored
        divergence = [
            F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="sum")
            for (ours, _), theirs in zip(losses, of_base, strict=True)
        ]
        weighted = [((-loss).exp().detach() * loss).sum() for _, loss in losses]
        expected = (sum(weighted) + 0.5 * sum(divergence)) / count
    else:
        means = sorted(loss.mean().item() for _, loss in losses)
        tau = (means[1] + means[2]) / 2
        expected = sum(((-loss.detach() / tau).exp().clamp(min=TALR_FLOOR) * loss).sum() for _, loss in losses) / count
    expected.backward()
    loss, grads = one_step(trainer, rows)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(grads[name], parameter.grad, atol=2e-5), name


@pytest.mark.parametrize("row", [ASFT, TALR], ids=["asft", "talr"])
def test_interrupted_equals_uninterrupted(tiny_model, tmp_path, row):
    """The base's logits are the base's after a resumption too."""
    run(tiny_model, tmp_path / "whole", row)
    with pytest.raises(Stop):
        run(tiny_model, tmp_path / "parts", row, progress=stop_at(3))
    run(tiny_model, tmp_path / "parts", row)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")


def test_the_kl_starts_at_zero_and_is_reported(tiny_model, tmp_path):
    """The student is the base at first; float16 rounds what is stored."""
    run(tiny_model, tmp_path, ASFT)
    first, *_, last = steps(tmp_path)
    assert float(first["l_target_kl"]) == pytest.approx(0, abs=1e-5)
    assert float(last["l_target_kl"]) > 1e-4
    assert float(last["loss"]) == pytest.approx(float(last["l_sft"]) + 0.5 * float(last["l_target_kl"]))
    assert "0.5 x KL(base || student)" in (tmp_path / "output" / "model" / "README.md").read_text()
    assert plan(job(tiny_model, tmp_path, ASFT, template_text=TEACHER), tmp_path / "plan")["measured"]


def test_it_needs_a_cross_entropy():
    from tiny import distillation

    with pytest.raises(ValueError, match="target_kl with sft false"):
        method(sft=False, distillation=distillation(kl_weight=1.0), target_kl=TargetKl())


def test_a_scaled_learning_rate(tiny_model, tmp_path):
    run(tiny_model, tmp_path / "whole", "sft", train(learning_rate=1e-3))
    run(tiny_model, tmp_path / "scaled", method(learning_rate_scale=0.2), train(learning_rate=5e-3), rows=pairs())
    assert same_weights(tmp_path / "whole", tmp_path / "scaled")
