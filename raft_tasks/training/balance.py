"""How the losses are weighted against each other: lambda (Eqs. 11-12) and w of L = L_SFT + lambda L_KL + w L_anchor."""

from raft_tasks.config import AnchorLoss, Method

EPSILON = 1e-8
ANCHOR_BETA = 0.9  # of the averages behind w: the paper's value for lambda


class EmaBalance:
    """lambda = m^_SFT / (m^_KL + eps), the m^ being bias-corrected exponential moving averages of the two losses.

    Args:
        beta: of the averages, in [0, 1).
        bound: lambda is never larger. Without one it explodes where teacher and student agree (L_KL ~ 0).
    """

    def __init__(self, beta: float, bound: float) -> None:
        self.beta, self.bound = beta, bound
        self.sft, self.kl, self.steps = 0.0, 0.0, 0

    def update(self, sft: float, kl: float) -> float:
        """Take in the losses of one optimiser step; return its lambda, a constant to the gradient."""
        self.steps += 1
        self.sft = self.beta * self.sft + (1 - self.beta) * sft
        self.kl = self.beta * self.kl + (1 - self.beta) * kl
        correction = 1 - self.beta**self.steps
        # KL is never negative, but its sum may round below zero
        return min(self.sft / correction / (max(self.kl / correction, 0.0) + EPSILON), self.bound)

    def state_dict(self) -> dict[str, float]:
        return {"sft": self.sft, "kl": self.kl, "steps": self.steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.sft, self.kl, self.steps = state["sft"], state["kl"], int(state["steps"])


class FixedBalance:
    """The same weight at every step."""

    def __init__(self, value: float) -> None:
        self.value = value

    def update(self, sft: float, kl: float) -> float:
        return self.value

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        pass


def make_balance(method: Method) -> EmaBalance | FixedBalance | None:
    """The balance of a method's row; None where there is no teacher."""
    distillation = method.distillation
    if distillation is None:
        return None
    if distillation.kl_weight == "ema":
        return EmaBalance(distillation.ema_beta, distillation.kl_weight_max)
    return FixedBalance(distillation.kl_weight)


class AnchorWeight:
    """w of the next optimiser step: a number, or the EMA balance of L_SFT and L_anchor of the steps so far.

    Unlike lambda it uses the previous step's losses, so that no loss need be known before another's backward pass. At
    the first step the student is the base, where KL has no gradient; for a cross-entropy the weight is 1 there.
    """

    def __init__(self, settings: AnchorLoss) -> None:
        bound = settings.weight_max
        if settings.weight == "ema":
            self.balance: EmaBalance | FixedBalance = EmaBalance(ANCHOR_BETA, bound)
            self.value = min(1.0, bound)
        else:
            self.balance, self.value = FixedBalance(settings.weight), settings.weight

    def update(self, sft: float, anchor: float) -> None:
        """Take in the losses of one optimiser step."""
        self.value = self.balance.update(sft, anchor)

    def state_dict(self) -> dict[str, float]:
        return {**self.balance.state_dict(), "value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.balance.load_state_dict(state)
        self.value = state["value"]
