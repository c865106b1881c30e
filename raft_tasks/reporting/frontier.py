"""The domain-general frontier: which models no other one beats on both."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from raft_tasks.reporting.metrics import FrontierPoint, MethodMetrics
from raft_tasks.reporting.sweeps import Sweep

AXES = ("domain_acc", "general")
TRAINING_LENGTH = ("train.learning_rate", "train.epochs")  # sweeps of these are points of the frontier


def frontier_points(
    methods: Mapping[str, MethodMetrics], sweeps: Sequence[Sweep], domain: str | None
) -> list[FrontierPoint]:
    """Every model with a domain and a general score.

    Args:
        methods: of a domain, or of all of them together.
        sweeps: of learning rate or epochs in `domain` give points too, with their setting.
        domain: None for several domains together, which no sweep covers.
    """
    points: list[dict[str, Any]] = [
        {"method": method, "setting": None, "line": None, **{axis: row["scores"][axis] for axis in AXES}}
        for method, row in methods.items()
    ]
    swept: dict[tuple[str, str, str], dict[str, Any]] = {}
    for score in (score for sweep in sweeps for score in sweep.scores):
        if score.domain == domain and score.parameter in TRAINING_LENGTH and score.measure in AXES:
            axes = swept.setdefault((score.method, score.parameter, score.value), {})
            axes[score.measure] = {"estimate": score.estimate, "low": score.low, "high": score.high}
    for (method, parameter, value), scores in swept.items():
        if all(axis in scores for axis in AXES):
            setting = f"{parameter.split('.')[-1].replace('_', ' ')} {value}"
            points.append({"method": method, "setting": setting, "line": parameter, **scores})
    best = undominated([(point["domain_acc"]["estimate"], point["general"]["estimate"]) for point in points])
    return [cast("FrontierPoint", {**point, "best": i in best}) for i, point in enumerate(points)]


def undominated(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the points that no other point matches on both coordinates and beats on one (Pareto)."""
    return {i for i, (x, y) in enumerate(points) if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)}
