"""Do judges agree, with each other and with people? Chance-corrected, from scores in [0, 1].

Classes are what a judge can say: the whole points 0 to 10 for scores, yes and no for "good enough". A kappa is 1 for
full agreement, 0 for what chance would give, and None where every judge says the same of everything.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

POINTS = 10  # a score in [0, 1] as one of 11 classes

Scores = Sequence[float | None]  # one per judged text; None where the judge abstained


def cohen_kappa(a: ArrayLike, b: ArrayLike, classes: int, weights: Literal["none", "quadratic"]) -> float | None:
    """Two raters' agreement beyond chance (Cohen 1960; with quadratic weights, 1968), by scikit-learn.

    Args:
        a, b: class of every item [N], whole numbers in [0, classes).
        weights: "none": any two classes differ alike; "quadratic": by their distance squared, for ordered classes.

    Returns:
        None where there is no item or chance alone agrees everywhere.

    Raises:
        ValueError: unequal numbers of ratings.
    """
    from sklearn.metrics import cohen_kappa_score  # takes a second to import

    first, second = np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)
    if first.shape != second.shape:
        raise ValueError(f"got {first.shape} and {second.shape} ratings, expected one of each rater per item")
    if len({*first.tolist(), *second.tolist()}) < 2:
        return None
    return float(
        cohen_kappa_score(first, second, labels=range(classes), weights=None if weights == "none" else weights)
    )


def fleiss_kappa(counts: ArrayLike) -> float | None:
    """Agreement of several raters beyond chance (Fleiss 1971); scikit-learn has none.

    Args:
        counts: how many raters put item i into class j [N, classes]; every item has the same number, 2 or more.

    Returns:
        (P - Pe) / (1 - Pe), None where Pe is 1 or there is no item.
    """
    table = np.asarray(counts, dtype=np.float64)
    if not table.size:
        return None
    raters = table.sum(axis=1)
    if (raters != raters[0]).any() or raters[0] < 2:
        raise ValueError(f"got {sorted(set(raters.tolist()))} raters per item, expected one number, 2 or more")
    n = raters[0]
    observed = float(((table**2).sum(axis=1) - n).mean() / (n * (n - 1)))
    by_chance = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def panel_agreement(scores: Mapping[str, Scores], accept_at: float) -> dict[str, Any]:
    """How far the judges of a panel agree; JSON-ready.

    Args:
        scores: per judge, of the same texts in the same order.
        accept_at: the score from which a text is good enough.

    Returns:
        "judges": per judge texts scored and abstained from, mean score and share accepted;
        "pairs": per two judges the kappas of `_kappas`; "fleiss_kappa": of "good enough" over all judges, on the texts
        that all of them scored; "accept_at", "texts".
    """
    judges: dict[str, Any] = {}
    for name, all_scores in scores.items():
        given = [score for score in all_scores if score is not None]
        judges[name] = {
            "scored": len(given),
            "abstained": len(all_scores) - len(given),
            "mean": float(np.mean(given)) if given else None,
            "accepted": float(np.mean([score >= accept_at for score in given])) if given else None,
        }
    pairs = []
    for names in combinations(scores, 2):
        a, b = _scored_by_both(*(scores[name] for name in names))
        pairs.append({"judges": list(names), "texts": len(a), **_kappas(a, b, accept_at)})
    complete = [row for row in zip(*scores.values(), strict=True) if None not in row]
    accepted = [sum(score is not None and score >= accept_at for score in row) for row in complete]
    return {
        "accept_at": accept_at,
        "texts": len(next(iter(scores.values()), [])),
        "judges": judges,
        "pairs": pairs,
        "fleiss_kappa": fleiss_kappa([[yes, len(scores) - yes] for yes in accepted]) if len(scores) > 1 else None,
    }


def panel_mean(scores: Mapping[str, Scores]) -> list[float | None]:
    """Per text the mean score of the judges that did not abstain; None where all did."""
    given = [[score for score in row if score is not None] for row in zip(*scores.values(), strict=True)]
    return [float(np.mean(row)) if row else None for row in given]


def compare_with_people(scores: Mapping[str, Scores], people: Sequence[float], accept_at: float) -> dict[str, Any]:
    """Each judge, and what its panel says, beside the scores that people gave to the same texts; JSON-ready.

    Returns:
        Per judge "n", "abstained", "correlation" (Pearson's), "bias" (mean of judge - people; positive is too kind),
        "mean_error" (mean absolute difference) and the kappas of `_kappas`.
    """
    compared = {}
    for name, all_scores in scores.items():
        judge, human = _scored_by_both(all_scores, people)
        difference = judge - human
        varied = len(judge) > 1 and judge.std() > 0 and human.std() > 0
        compared[name] = {
            "n": len(judge),
            "abstained": len(all_scores) - len(judge),
            "correlation": float(np.corrcoef(judge, human)[0, 1]) if varied else None,
            "bias": float(difference.mean()) if len(judge) else None,
            "mean_error": float(np.abs(difference).mean()) if len(judge) else None,
            **_kappas(judge, human, accept_at),
        }
    return compared


def _kappas(a: NDArray[np.float64], b: NDArray[np.float64], accept_at: float) -> dict[str, float | None]:
    """The quadratically weighted kappa of two raters' points, and the kappa of "good enough"."""
    points, others = (np.rint(scores * POINTS).astype(np.int64) for scores in (a, b))
    return {
        "weighted_kappa": cohen_kappa(points, others, POINTS + 1, "quadratic"),
        "kappa": cohen_kappa(a >= accept_at, b >= accept_at, 2, "none"),
    }


def _scored_by_both(a: Scores, b: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The scores of the texts that both have scored [N], [N]."""
    pairs = [pair for pair in zip(a, b, strict=True) if None not in pair]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
