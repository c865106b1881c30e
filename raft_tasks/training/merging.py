"""Merging a trained model with its base: W = W0 + coefficient x kept(dW), dW = W - W0 the task vector.

    prune        FAPM (arXiv:2509.08255): the share of entries that score best, at coefficient 1
    dg_hard      DG-Hard (arXiv:2605.20296): the singular values above the noise, at coefficient 1
    interpolate  WiSE-FT (arXiv:2109.01903): all of dW
    ties         TIES (arXiv:2306.01708): trim, elect signs, average. With a single model TIES reduces to trimming; of
                 several (seeds, domains) it takes the mean of the entries that agree with the elected sign

Coefficients are chosen on validation items, domain first (the recover step of arXiv:2608.20281): the largest domain
score among those whose general score is not worse than the base's by more than a bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raft_tasks.chat import save_tokenizer
from raft_tasks.config import Merge, Model
from raft_tasks.model_files import save_network
from raft_tasks.model_loading import load_model, quiet
from raft_tasks.training.divergence import relative_distance

SMALLEST_MATRIX = 1024  # entries below which DG-Hard, as in its code, leaves a matrix as it is


@dataclass(frozen=True)
class Candidate:
    """What a coefficient scores on validation items."""

    coefficient: float
    domain: float
    general: float


def fapm(base: Tensor, delta: Tensor, keep: float) -> Tensor:
    """The best-scored `keep` share of `delta`'s entries, the others 0: score |dW| - mean|W0| x |dW| / |W0|.

    A large change of a small weight scores low: it overwrites what the base knew. Where W0 is 0 the score is -inf.
    """
    size = base.abs()
    score = delta.abs() - size.mean() * delta.abs() / size
    return largest(delta, torch.where(size > 0, score, -torch.inf), keep)


def dg_hard(delta: Tensor) -> Tensor:
    """`delta` [m, n] without its singular values up to tau; vectors and small matrices are returned whole.

    tau = omega(beta) / mu(beta) x median singular value, beta = min(m, n) / max(m, n): Donoho and Gavish's optimal hard
    threshold for a low-rank matrix in white noise of unknown level (arXiv:1305.5870).
    """
    if delta.ndim != 2 or delta.numel() < SMALLEST_MATRIX:
        return delta
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    threshold = threshold_factor(min(delta.shape) / max(delta.shape)) * values.median()
    kept = values * (values > threshold)
    return (left * kept) @ right


@cache
def threshold_factor(beta: float) -> float:
    """omega(beta) / mu(beta): the optimal threshold for noise of level 1 over the median of pure noise.

    mu^2 is the median of the Marchenko-Pastur law, x = 1 + beta + 2 sqrt(beta) cos(theta) with the density
    2 sin(theta)^2 / (pi x) over theta in [0, pi].
    """
    omega = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    theta = (torch.arange(100_000, dtype=torch.float64) + 0.5) * (math.pi / 100_000)
    x = 1 + beta + 2 * math.sqrt(beta) * theta.cos()
    mass = (theta.sin() ** 2 / x).cumsum(0)  # from the largest x down
    return omega / math.sqrt(float(x[torch.searchsorted(mass, mass[-1:] / 2)]))


def trim(delta: Tensor, keep: float) -> Tensor:
    """The `keep` share of `delta`'s entries with the largest magnitude, the others 0."""
    return largest(delta, delta.abs(), keep)


def largest(delta: Tensor, score: Tensor, keep: float) -> Tensor:
    """`delta` where `score` is among the `keep` share of the highest, else 0; at least one entry stays."""
    count = max(1, int(keep * delta.numel()))
    kept = torch.zeros_like(delta).flatten()
    at = score.flatten().topk(count).indices
    kept[at] = delta.flatten()[at]
    return kept.view_as(delta)


def ties(deltas: Sequence[Tensor], keep: float) -> Tensor:
    """The merged task vector of several: each trimmed, then the mean of the entries that have the elected sign.

    The sign with the larger total magnitude is elected (positive, if they are equal). Trimming is per tensor here,
    where the paper trims a model's whole task vector.
    """
    trimmed = torch.stack([trim(delta, keep) for delta in deltas])
    elected = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0).to(trimmed.dtype)
    agree = trimmed.sign() == elected
    return (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)


def choose(candidates: Sequence[Candidate], base_general: float, general_loss: float) -> tuple[Candidate, bool]:
    """Domain first: the largest domain score among those with general >= base_general - general_loss.

    Of equal ones the better general score decides, then the smaller coefficient. If none keeps the bound: the one that
    misses it least, and False.
    """
    inside = [candidate for candidate in candidates if candidate.general >= base_general - general_loss - 1e-9]
    if inside:
        return max(inside, key=lambda candidate: (candidate.domain, candidate.general, -candidate.coefficient)), True
    return max(candidates, key=lambda candidate: (candidate.general, candidate.domain, -candidate.coefficient)), False


class Merger:
    """The base, and the part of one or several trainings' change that `merge` keeps.

    Args:
        base: the original model.
        trained: folders of trained ones, adapters merged; their mean change (or TIES) is what is kept.
        merge: what to keep.

    Raises:
        InputError: one of them cannot be loaded.
    """

    def __init__(self, base: Model, trained: Sequence[Path], merge: Merge) -> None:
        self.settings = base
        self.base, self.tokenizer = load_model(base, torch.float32)
        self.original = dict(self.base.named_parameters())
        deltas: list[dict[str, Tensor]] = []
        with torch.no_grad():
            for folder in trained:
                network, _ = load_model(base.model_copy(update={"path": str(folder), "revision": None}), torch.float32)
                deltas.append({name: value - self.original[name] for name, value in network.named_parameters()})
            self.network: Any = network
            self.kept = {
                name: kept(weight, [delta[name] for delta in deltas], merge) for name, weight in self.original.items()
            }

    def write(self, coefficient: float, folder: Path) -> dict[str, float]:
        """Save W0 + coefficient x what is kept; returns the distance of its weights to the base."""
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(self.original[name] + coefficient * self.kept[name])
        distance = relative_distance(self.network, self.base)
        with quiet():
            save_network(self.network.to(getattr(torch, self.settings.dtype)), folder)
            self.network.to(torch.float32)
        save_tokenizer(self.tokenizer, self.settings.system, folder, self.settings.thinking)
        return distance


def kept(base: Tensor, deltas: Sequence[Tensor], merge: Merge) -> Tensor:
    """What `merge` keeps of one parameter's changes."""
    if merge.kind == "ties":
        return ties(deltas, merge.keep)
    delta = torch.stack(list(deltas)).mean(0) if len(deltas) > 1 else deltas[0]
    if merge.kind == "dg_hard":
        return dg_hard(delta)
    return fapm(base, delta, merge.keep) if merge.kind == "prune" else delta
