"""The top-K distillation loss, forward and backward, against the full-logit form: time and peak extra memory, on a CPU.

    python benchmarks/loss.py [positions of the timing]

The full-logit form computes [positions, vocabulary] logits of both models and takes logsumexp, top-K and gather from
them: the arithmetic of TRL's experimental SDFT loss with the teacher's top K as support, written out here because TRL
is not a dependency of the project. The lean form is raft_tasks.training.losses.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
import threading
import time
from collections.abc import Callable
from datetime import date

import torch
import torch.nn.functional as F
from torch import Tensor

from raft_tasks.training.losses import Head, lean_logits_at, lean_top_k, top_k_forward_kl

VOCABULARY, K, HIDDEN, TEMPERATURE = 128_256, 512, 1_024, 1.5
REPEATS = 3


def full_logits(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
    with torch.no_grad():
        teacher = teacher_hidden @ teacher_weight.T / TEMPERATURE
    student = hidden @ weight.T / TEMPERATURE
    kept, ids = teacher.topk(K)
    log_q = kept - teacher.logsumexp(-1, keepdim=True)
    log_p = student.gather(-1, ids) - student.logsumexp(-1, keepdim=True)
    log_q = log_q - log_q.logsumexp(-1, keepdim=True)
    log_p = log_p - log_p.logsumexp(-1, keepdim=True)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1).mean()


def lean(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor) -> Tensor:
    taught = lean_top_k(teacher_hidden, Head(teacher_weight), K)
    own = lean_logits_at(hidden, Head(weight), taught.ids)
    return top_k_forward_kl(own.logits, taught.logits, TEMPERATURE).mean()


def run(form: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> tuple[float, list[Tensor]]:
    """Value and gradients of one forward and backward pass."""
    for tensor in tensors:
        tensor.grad = None
    value = form(*tensors)
    value.backward()
    return value.item(), [tensor.grad for tensor in tensors if tensor.grad is not None]


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * 4096


def peak_extra(form: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> float:
    """MB beyond what was there before, gradients included, sampled every 2 ms."""
    for tensor in tensors:
        tensor.grad = None
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, highest, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run(form, tensors)
    done.set()
    watcher.join()
    return (highest - before) / 1e6


def inputs(positions: int, trainable: bool) -> tuple[Tensor, ...]:
    """Student's hidden states and head, teacher's; the two heads are close, as they are in training."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, HIDDEN, generator=draw)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=draw) * 0.05
    teacher_hidden = hidden + 0.3 * torch.randn(positions, HIDDEN, generator=draw)
    return hidden.requires_grad_(), weight.requires_grad_(trainable), teacher_hidden, weight.detach().clone()


def main() -> None:
    timed = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    print(
        f"V {VOCABULARY:,}, K {K}, H {HIDDEN:,}, float32, {torch.get_num_threads()} thread(s), torch "
        f"{torch.__version__}, {platform.machine()}, {date.today()}\n"
    )
    for trainable in (False, True):
        tensors = inputs(timed, trainable)
        seconds: dict[str, list[float]] = {"full": [], "lean": []}
        results = {}
        for _ in range(REPEATS):  # in turn, so that a busy machine slows both
            for name, form in (("full", full_logits), ("lean", lean)):
                begun = time.perf_counter()
                results[name] = run(form, tensors)
                seconds[name].append(time.perf_counter() - begun)
        apart = max(
            ((a - b).abs().max() / b.abs().max()).item()
            for a, b in zip(results["lean"][1], results["full"][1], strict=True)
        )
        best = {name: min(times) for name, times in seconds.items()}
        print(
            f"{'trainable' if trainable else 'frozen'} head, {timed:,} positions, best of {REPEATS}: "
            f"full {best['full']:.2f} s, lean {best['lean']:.2f} s, ratio {best['lean'] / best['full']:.2f}; "
            f"losses differ by {abs(results['lean'][0] - results['full'][0]):.1e}, gradients by {apart:.1e} (relative)",
            flush=True,
        )
    print("\npeak extra memory, frozen head, MB")
    for positions in (1024, 4096, 8192):
        tensors = inputs(positions, trainable=False)
        row = f"{positions:6,} positions: lean {peak_extra(lean, tensors):7,.0f}"
        if positions <= 4096:
            row += f", full {peak_extra(full_logits, tensors):7,.0f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
