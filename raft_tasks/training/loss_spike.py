"""When a finite loss is beyond saving: the rule that stops a training which has run away."""

from collections import deque
from statistics import median
from typing import Any

from raft_tasks.config import LossSpike

WINDOW = 50  # steps whose median a loss is compared with
FIRST = 10  # steps whose median is where the loss began


class LossSpikeGuard:
    """A loss has run away if, for `steps` optimiser steps in a row, it is above `factor` times its running median and
    above where training began.

    The median over the last WINDOW calm steps forgives single bad batches and follows a falling loss; a spike does not
    raise it, its steps are left out. The second condition spares small losses, which jump by large factors without
    harm: the floor is the median of the FIRST steps.
    """

    def __init__(self, settings: LossSpike) -> None:
        self.factor, self.steps = settings.factor, settings.steps
        self.calm: deque[float] = deque(maxlen=WINDOW)
        self.first: list[float] = []
        self.streak = 0  # steps above the bound, up to now

    @property
    def bound(self) -> float:
        """What the next loss is compared with; infinite until the FIRST steps are over."""
        if len(self.first) < FIRST:
            return float("inf")
        return max(self.factor * median(self.calm), median(self.first))

    def update(self, loss: float) -> bool:
        """Take in the loss of one optimiser step; true if it has run away."""
        if loss > self.bound:
            self.streak += 1
            return self.streak >= self.steps
        self.streak = 0
        self.calm.append(loss)
        if len(self.first) < FIRST:
            self.first.append(loss)
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"calm": list(self.calm), "first": self.first, "streak": self.streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calm = deque(state["calm"], maxlen=WINDOW)
        self.first, self.streak = list(state["first"]), int(state["streak"])
