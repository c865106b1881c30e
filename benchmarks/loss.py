"""The losses, forward and backward, against TRL's, Liger's and torch's own: equality, time and peak extra memory.

    python benchmarks/loss.py                   # float32 on the CPU, with 1 and 2 threads; about 10 minutes
    python benchmarks/loss.py --device cuda     # bfloat16 on a GPU

TRL's form is its code (`trl.experimental.sdft.loss_utils.compute_topk_self_distillation_loss`, 1.16; extra `rivals`),
called as its trainer does: full logits of student and teacher, each divided by the temperature. One thing is aligned:
TRL takes the top K of its first argument, the student, with the KL of `distillation_alpha`; RAFT (Eq. 9) takes the
teacher's. The teacher is therefore passed first, with alpha 1, the KL of the first argument against the second: the
same value on the same support. TRL's own order (student's support, alpha 0) is timed beside it. What the KL's mean
leaves out is the same in both: T^2, masks, the mean per sample.

Ours: `chunked_top_k`, `chunked_logits_at`, `top_k_forward_kl`, as the trainer calls them, with the student's mass
inside the teacher's top K, a diagnostic, at every 7th position (on a GPU at all); "mass everywhere" takes it at all of
them. The floor is the teacher's product with its head, without which there is no top K.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measuring import machine, peak_extra, table, timed_in_turn
from torch import Tensor

from raft_tasks.training.loss_terms import MASS_EVERY
from raft_tasks.training.losses import (
    Head,
    chunked_logits_at,
    chunked_mean_cross_entropy,
    chunked_top_k,
    top_k_forward_kl,
)

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
TEMPERATURE = 1.5

Form = Callable[[], Tensor]


class Inputs:
    """Student's hidden states and head, teacher's, labels; the two heads are close, as they are in training."""

    def __init__(self, sizes: argparse.Namespace, positions: int, trainable: bool) -> None:
        draw = torch.Generator().manual_seed(0)
        hidden = torch.randn(positions, sizes.hidden, generator=draw)
        weight = torch.randn(sizes.vocabulary, sizes.hidden, generator=draw) * 0.05
        teacher_hidden = hidden + 0.3 * torch.randn(positions, sizes.hidden, generator=draw)
        labels = torch.randint(sizes.vocabulary, (positions,), generator=draw)
        dtype = getattr(torch, sizes.dtype)
        self.hidden = hidden.to(sizes.device, dtype).requires_grad_()
        self.weight = weight.to(sizes.device, dtype).requires_grad_(trainable)
        self.teacher_hidden, self.labels = teacher_hidden.to(sizes.device, dtype), labels.to(sizes.device)
        self.teacher_weight = self.weight.detach().clone()
        self.k = sizes.top_k

    def gradients(self, form: Form) -> tuple[float, list[Tensor]]:
        """Value and gradients of one forward and backward pass."""
        self.hidden.grad = self.weight.grad = None
        value = form()
        value.backward()
        return value.item(), [leaf.grad for leaf in (self.hidden, self.weight) if leaf.grad is not None]


def trl(inputs: Inputs, teachers_support: bool = True) -> Tensor:
    from trl.experimental.sdft.loss_utils import compute_topk_self_distillation_loss

    student = inputs.hidden @ inputs.weight.T / TEMPERATURE
    with torch.no_grad():
        teacher = inputs.teacher_hidden @ inputs.teacher_weight.T / TEMPERATURE
    both = (teacher, student) if teachers_support else (student, teacher)
    per_token = compute_topk_self_distillation_loss(
        *both, distillation_topk=inputs.k, distillation_alpha=float(teachers_support), distillation_add_tail=False
    )
    return per_token.mean()


def chunked(inputs: Inputs, mass_every: int = MASS_EVERY) -> Tensor:
    taught = chunked_top_k(inputs.teacher_hidden, Head(inputs.teacher_weight), inputs.k)
    own = chunked_logits_at(inputs.hidden, Head(inputs.weight), taught.ids, mass_every=mass_every)
    return top_k_forward_kl(own.logits, taught.logits, TEMPERATURE).mean()


def floor(inputs: Inputs) -> Tensor:
    """The teacher's product with its head, and nothing else."""
    with torch.no_grad():
        return inputs.teacher_hidden @ inputs.teacher_weight.T


def liger_jsd(inputs: Inputs) -> Tensor:
    """Liger's fused linear JSD at beta 0, the forward KL: over the whole vocabulary, not the top K."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    fused = LigerFusedLinearJSD(jsd_beta=0.0, temperature=TEMPERATURE)
    return fused(inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight)


def full_cross_entropy(inputs: Inputs) -> Tensor:
    return F.cross_entropy(inputs.hidden @ inputs.weight.T, inputs.labels)


def torch_cross_entropy(inputs: Inputs) -> Tensor:
    """torch's own chunked form, from 2.13 on; its default chunk of 4 positions is several times slower on a CPU."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=min(512, len(inputs.labels)))
    return F.linear_cross_entropy(inputs.hidden, inputs.weight, inputs.labels, options=options)


def trl_cross_entropy(inputs: Inputs) -> Tensor:
    """What TRL's SFTTrainer computes: log-probabilities by vocabulary chunks, computed anew in the backward pass."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    logprobs, *_ = ChunkedLogProbFunction.apply(
        inputs.hidden, inputs.weight, None, inputs.labels, 1.0, 8192, None, 1.0, ()
    )
    return -logprobs.mean()


def liger_cross_entropy(inputs: Inputs) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(inputs.weight, inputs.hidden, inputs.labels)


def chunked_cross_entropy(inputs: Inputs) -> Tensor:
    return chunked_mean_cross_entropy(inputs.hidden, Head(inputs.weight), inputs.labels, len(inputs.labels))[0]


def has_liger(device: str) -> bool:
    try:
        import liger_kernel  # noqa: F401
    except ModuleNotFoundError:
        return False
    return device == "cuda"  # its kernels are Triton's


def distillation(device: str) -> dict[str, Callable[[Inputs], Tensor]]:
    forms: dict[str, Callable[[Inputs], Tensor]] = {
        "TRL SDFT": trl,
        "TRL SDFT, student's support": lambda inputs: trl(inputs, teachers_support=False),
        "ours": chunked,
        "ours, mass everywhere": lambda inputs: chunked(inputs, mass_every=1),
    }
    return forms | ({"Liger JSD, whole vocabulary": liger_jsd} if has_liger(device) else {})


def cross_entropies(device: str) -> dict[str, Callable[[Inputs], Tensor]]:
    forms: dict[str, Callable[[Inputs], Tensor]] = {"full logits": full_cross_entropy, "TRL SFT": trl_cross_entropy}
    if hasattr(F, "linear_cross_entropy"):
        forms["torch linear_cross_entropy"] = torch_cross_entropy
    if has_liger(device):
        forms["Liger"] = liger_cross_entropy
    return forms | {"ours": chunked_cross_entropy}


def apart(inputs: Inputs, form: Callable[[Inputs], Tensor], reference: Callable[[Inputs], Tensor]) -> dict[str, float]:
    """How far a form is from the reference: of the value absolutely, of the gradients relative to their largest."""
    value, gradients = inputs.gradients(lambda: form(inputs))
    kept = [gradient.clone() for gradient in gradients]
    expected, references = inputs.gradients(lambda: reference(inputs))
    relative = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(kept, references, strict=True)]
    return {"value": abs(value - expected), "gradients": max(relative)}


def timings(
    inputs: Inputs, forms: dict[str, Callable[[Inputs], Tensor]], first: str, repeats: int, device: str
) -> dict[str, Any]:
    """One row per form: seconds, CPU seconds, and both as a share of form `first`'s."""
    calls: dict[str, Callable[[], object]] = {
        name: lambda form=form: inputs.gradients(lambda: form(inputs))  # type: ignore[misc]
        for name, form in forms.items()
    }
    if first == "TRL SDFT":
        calls["floor: the teacher's product"] = lambda: floor(inputs)
    times = timed_in_turn(calls, repeats, device)
    return {
        name: (
            f"{time.seconds:.2f}",
            f"{time.seconds / times[first].seconds:.2f}",
            f"{time.cpu / times[first].cpu:.2f}",
            f"{time.spread:.2f}",
        )
        for name, time in times.items()
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--hidden", type=int, default=1_024)
    parser.add_argument("--top-k", type=int, default=512)
    parser.add_argument("--positions", type=int, default=512, help="of the timing")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="on the CPU")
    parser.add_argument("--memory", type=int, nargs="*", default=[1_024, 4_096, 8_192], help="positions")
    sizes = parser.parse_args(arguments)
    sizes.dtype = "float32" if sizes.device == "cpu" else "bfloat16"
    if not has_liger("cuda"):
        print("liger-kernel is not installed: left out\n")
    print(
        f"V {sizes.vocabulary:,}, K {sizes.top_k}, H {sizes.hidden:,}, {sizes.dtype}, {sizes.positions:,} positions, "
        f"best of {sizes.repeats} in turn; {machine(sizes.device)}"
    )
    branches = (
        ("KL", distillation, "TRL SDFT", chunked),
        ("cross-entropy", cross_entropies, "full logits", chunked_cross_entropy),
    )
    for name, forms, first, ours in branches:
        for trainable in (False, True):
            inputs = Inputs(sizes, sizes.positions, trainable)
            far = apart(inputs, ours, forms(sizes.device)[first])
            print(
                f"\n{name}, {'trainable' if trainable else 'frozen'} head: ours is {far['value']:.1e} from {first}, "
                f"gradients {far['gradients']:.1e} (relative to the largest)"
            )
            for threads in sizes.threads if sizes.device == "cpu" else [torch.get_num_threads()]:
                torch.set_num_threads(threads)
                rows = timings(inputs, forms(sizes.device), first, sizes.repeats, sizes.device)
                heads = [f"{threads} thread(s)" if sizes.device == "cpu" else "GPU", "seconds"]
                print("\n" + table([*heads, "ratio", "CPU ratio", "median / best"], ((k, *v) for k, v in rows.items())))
    largest_full = 4_096  # TRL's form at more positions does not fit a small machine
    for name, forms, _, _ in branches:
        rows = {}
        for form_name, form in forms(sizes.device).items():
            rows[form_name] = []
            for positions in sizes.memory:
                inputs = Inputs(sizes, positions, trainable=False)
                fits = sizes.device == "cuda" or positions <= largest_full or form_name.startswith("ours")
                call = lambda inputs=inputs, form=form: inputs.gradients(lambda: form(inputs))  # noqa: E731
                rows[form_name].append(f"{peak_extra(call):,.0f}" if fits else "")
        print(f"\n{name}, frozen head: peak extra memory, MB\n")
        print(table(["positions", *map("{:,}".format, sizes.memory)], ((k, *v) for k, v in rows.items())), flush=True)


if __name__ == "__main__":
    main()
