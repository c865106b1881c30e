"""Small trainings, and what a test reads of them."""

import csv
from inspect import getclosurevars

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny import METHODS, TEACHER, distillation, job, pairs, train

from raft_tasks.model_loading import load_model
from raft_tasks.training.conversations import Encoder
from raft_tasks.training.preparation import TrainingData, teacher_turn, training_arguments
from raft_tasks.training.rollouts import Rollout
from raft_tasks.training.step_metrics import COLUMNS
from raft_tasks.training.teacher import frozen
from raft_tasks.training.train import train_model
from raft_tasks.training.trainer import RaftTrainer

TIMES = {"seconds", "tokens_per_second", "model_flops_utilisation"} | {c for c in COLUMNS if c.endswith("_share")}


def run(model, folder, method="raft", settings=None, seed=0, progress=None, rows=None, template=TEACHER):
    changes = {"pairs": rows or pairs(), "train": settings or train(), "template_text": template, "seed": seed}
    return train_model(job(model, folder, method, **changes), progress)


def weights(folder):
    """Of the model, or of the adapter where that is all that is saved."""
    [file] = (folder / "output" / "model").glob("*.safetensors")
    return load_file(file)


def same_weights(a, b):
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def steps(folder):
    with (folder / "output" / "steps.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def numbers(folder):
    """steps.csv without what a clock says."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in steps(folder)]


def make_trainer(model, folder, method, settings, rollouts):
    student, tokenizer = load_model(model, torch.float32)
    teacher = frozen(load_model(model, torch.float32)[0]) if method.distillation else None
    limit = method.distillation.rollout_max_new_tokens if method.distillation else 0
    if method.distillation:  # these rollouts were never sampled
        method = method.model_copy(
            update={"distillation": method.distillation.model_copy(update={"sampling_logprob_tolerance": 9.0})}
        )
    rows = Encoder(tokenizer, settings.max_length, teacher_turn(method, TEACHER), limit)(pairs())
    row = job(model, folder, method, train=settings, output=folder, checkpoints=folder)
    trainer = RaftTrainer(row, student, teacher, TrainingData(tokenizer, rows), training_arguments(row, len(rows)))
    if method.distillation:
        trainer.rollout_buffer.sampler = lambda prompts, seeds: rollouts[: len(prompts)]
    return trainer


def teacher_network(teacher):
    """The model that a `frozen` teacher asks."""
    return getclosurevars(teacher).nonlocals["network"]


def one_step(trainer, rows):
    loss = trainer.training_step(trainer.model, rows).item()
    return loss, {name: parameter.grad for name, parameter in trainer.student.named_parameters()}


def plain_step(student, teacher, rows, rollouts, k, temperature, bound, tail):
    """Eqs. 6-12 written down plainly: full logits, row by row, float32, autograd of L_SFT + lambda L_KL."""
    losses = []
    for row in rows:
        logits = student(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
        losses.append(
            F.cross_entropy(logits[len(row.prompt_ids) - 1 : -1], torch.tensor(row.completion_ids), reduction="none")
        )
    l_sft = torch.cat(losses).mean()
    samples = []
    for row, z in zip(rows, [rollout.tokens for rollout in rollouts], strict=True):
        v = student(input_ids=torch.tensor([row.prompt_ids + z])).logits[0, len(row.prompt_ids) - 1 : -1]
        with torch.no_grad():
            u = teacher(input_ids=torch.tensor([row.teacher_prompt_ids + z])).logits[
                0, len(row.teacher_prompt_ids) - 1 : -1
            ]
        q, p = F.softmax(u / temperature, -1), F.softmax(v / temperature, -1)
        ids = q.topk(k).indices
        q, p = q.gather(-1, ids), p.gather(-1, ids)
        if tail:
            q, p = (torch.cat([side, 1 - side.sum(-1, keepdim=True)], -1) for side in (q, p))
        else:
            q, p = (side / side.sum(-1, keepdim=True) for side in (q, p))
        samples.append((q * (q.log() - p.log())).sum(-1).mean())
    l_kl = temperature**2 * torch.stack(samples).mean()
    weight = min((l_sft / l_kl).item(), bound)
    (l_sft + weight * l_kl).backward()
    return l_sft.item(), l_kl.item(), weight


def rollout(tokens, truncated):
    return Rollout(tokens, truncated, [-1.0] * len(tokens))


ROLLOUTS = [
    rollout([7, 8, 9, 2], False),
    rollout([2], False),
    rollout([11, 12, 13, 14, 15, 16], True),
    rollout([20, 2], False),
]


def moved(trainer):
    """The student away from the teacher."""
    with torch.no_grad():
        for parameter in trainer.student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return trainer


class Stop(Exception):
    pass


def stop_at(step):
    def progress(done, total, shown):
        if done == step:
            raise Stop

    return progress


def with_distill(method, **changes):
    return METHODS[method].model_copy(update={"distillation": distillation(**changes)})
