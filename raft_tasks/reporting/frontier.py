"""The domain-general frontier: which models no other one beats on both."""

from __future__ import annotations

from typing import Any

from raft_tasks.reporting.sweeps import Sweep

AXES = ("domain_acc", "general")
TRAINING_LENGTH = ("train.learning_rate", "train.epochs")  # sweeps of these are points of the frontier


def frontier_points(methods: dict[str, Any], sweeps: list[Sweep], domain: str | None) -> list[dict[str, Any]]:
    """Every model with a domain and a general score: {method, setting, line, domain_acc, general, best}.

    Args:
        methods: of a domain, or of all of them together, as in metrics.json.
        sweeps: of them, those of learning rate and epochs in `domain` give points too, with their setting, a line each.
        domain: None for all together, which no sweep is about.
    """
    found: list[dict[str, Any]] = [
        {"method": method, "setting": None, "line": None, **{axis: row["scores"][axis] for axis in AXES}}
        for method, row in methods.items()
    ]
    swept: dict[tuple[str, str, str], dict[str, Any]] = {}
    for score in (score for sweep in sweeps for score in sweep.scores):
        if score.domain == domain and score.parameter in TRAINING_LENGTH and score.measure in AXES:
            place = swept.setdefault((score.method, score.parameter, score.value), {})
            place[score.measure] = {"estimate": score.estimate, "low": score.low, "high": score.high}
    for (method, parameter, value), scores in swept.items():
        if all(axis in scores for axis in AXES):
            setting = f"{parameter.split('.')[-1].replace('_', ' ')} {value}"
            found.append({"method": method, "setting": setting, "line": parameter, **scores})
    best = undominated([(point["domain_acc"]["estimate"], point["general"]["estimate"]) for point in found])
    return [{**point, "best": place in best} for place, point in enumerate(found)]


def undominated(points: list[tuple[float, float]]) -> set[int]:
    """Places of the points that no other one matches on both coordinates and beats on one (Pareto)."""
    return {
        place
        for place, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)
    }
