"""Which rows every optimiser step learns, and which of them one process passes through the model at a time.

A step's rows depend on the seed alone, never on the number of processes: every process knows all of them and takes
its share, so that one process or eight compute the same losses and the same gradient.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

GROUPED_STEPS = 32  # rows of so many steps are sorted by length together: like lengths, still a random order


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass."""

    rows: list[int]  # their numbers within the optimiser step
    counts: bool  # False: a zero-weight dummy batch, so that every rank runs the same number of forward passes


def steps_of_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, grouped: bool) -> list[list[int]]:
    """The row numbers of each optimiser step of an epoch; a last step may have fewer rows.

    `lengths` is of every row, in tokens; if `grouped`, rows of like length share a step.
    """
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    if grouped:
        size, whole = GROUPED_STEPS * batch_size, len(order) // batch_size * batch_size
        for start in range(0, whole, size):  # a short last step has rows of any length, others in each epoch
            end = min(start + size, whole)
            order[start:end] = sorted(order[start:end], key=lambda row: -lengths[row])
    steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [steps[number] for number in torch.randperm(len(steps), generator=generator).tolist()] if grouped else steps


class StepSampler:
    """A batch sampler over optimiser steps; the Trainer sets the epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, grouped: bool) -> None:
        self.lengths, self.batch_size, self.seed, self.grouped, self.epoch = lengths, batch_size, seed, grouped, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        yield from steps_of_epoch(self.lengths, self.batch_size, self.seed, self.epoch, self.grouped)

    def after(self, step: int, count: int) -> list[list[int]]:
        """The row numbers of the `count` steps after number `step` of the training, as far as its epoch has them."""
        epoch, number = divmod(step, len(self))
        steps = steps_of_epoch(self.lengths, self.batch_size, self.seed, epoch, self.grouped)
        return steps[number + 1 : number + 1 + count]


class StepLoader(DataLoader):
    """Passes the epoch on, from the Trainer to the sampler."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def micro_batches(lengths: Sequence[int], size: int, process: int, processes: int) -> list[MicroBatch]:
    """One process's share of a step's rows, equally many micro-batches for every process.

    Rows of like length come together, which changes no mean and saves padding. `size`: rows of a micro-batch, at most.
    """
    size = min(size, -(-len(lengths) // processes))
    order = list(range(len(lengths)))
    if size < len(lengths):
        order.sort(key=lambda row: -lengths[row])
    batches = [MicroBatch(order[start : start + size], counts=True) for start in range(0, len(order), size)]
    batches += [MicroBatch(order[-1:], counts=False)] * (-len(batches) % processes)
    return batches[process::processes]


def replayed_rows(count: int, number: int, seed: int, step: int) -> list[int]:
    """Which of `count` replay rows an optimiser step learns: the next `number`, each pass over them in a new order."""
    first = step * number
    orders = {
        epoch: torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for epoch in range(first // count, (first + number - 1) // count + 1)
    }
    return [orders[position // count][position % count] for position in range(first, first + number)]
