"""summary.json: what one training was, in numbers. Every key is here."""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from raft_tasks.training.conversations import Encoded, unknown_share

FINAL = (
    "loss",
    "l_sft",
    "nll",
    "l_target_kl",
    "l_replay",
    "l_anchor",
    "l_kl",
    "ce_kl_ratio",
)  # columns of the last row of steps.csv


class LambdaSummary(TypedDict):
    """lambda over the optimiser steps."""

    min: float
    mean: float
    max: float
    last: float


class InjectionSummary(TypedDict):
    """The training on documents before the method's own."""

    rows: int  # windows
    steps: int
    seconds: float
    tokens_trained: int  # over all epochs
    nll: float | None  # of the last step


TrainingSummary = TypedDict(
    "TrainingSummary",
    {
        "steps": int,
        "seconds": float,  # of its steps, those of the injection included
        "injection": NotRequired[InjectionSummary],  # where the method has one
        "parameters": int,
        "trainable_parameters": int,
        "rows": int,
        "rows_left_out": int,  # whose targets `mixing` could not write
        "answer_tokens_trained": int,  # over all epochs; 0 with `sft: false`
        "replay_rows": int,  # general rows to draw from
        "rows_truncated": int,  # answers that train.too_long shortened
        "answer_tokens_truncated": int,  # of one epoch
        "thoughts": NotRequired[int],  # of the base, behind which rows are learned; where it thinks
        "unfinished_thoughts": NotRequired[int],  # of them, those that met models.base.thought_tokens
        "unknown_prompt_tokens": float,  # share of all prompt tokens
        "final": dict[str, float | None],  # FINAL
        "lambda": LambdaSummary | None,  # None: no teacher
        "curve": NotRequired[dict[str, Any]],  # forgetting.ForgettingCurve.summary; where `train.curve` is set
        "distance": dict[str, float],  # |W - W0| / |W0|: total, layer 0, ..., embed_tokens, norm
    },
)


def summarise(
    steps: Sequence[dict[str, Any]],
    rows: Sequence[Encoded],
    replay: Sequence[Encoded],
    unknown_token: int | None,
    parameters: tuple[int, int],
    distance: dict[str, float],
) -> TrainingSummary:
    """The summary of a training: `steps` are the rows of steps.csv, `parameters` all and the trained ones."""
    lambdas = [row["lambda"] for row in steps if row["lambda"] is not None]
    return {
        "steps": len(steps),
        "seconds": sum(row["seconds"] for row in steps),
        "parameters": parameters[0],
        "trainable_parameters": parameters[1],
        "rows": len(rows),
        "rows_left_out": 0,
        "answer_tokens_trained": 0 if steps[-1]["l_sft"] is None else round(
            steps[-1]["epoch"] * sum(len(row.completion_ids) for row in rows)
        ),
        "replay_rows": len(replay),
        "rows_truncated": sum(row.truncated_tokens > 0 for row in rows),
        "answer_tokens_truncated": sum(row.truncated_tokens for row in rows),
        "unknown_prompt_tokens": unknown_share(rows, unknown_token),
        "final": {name: steps[-1][name] for name in FINAL},
        "lambda": {
            "min": min(lambdas), "mean": sum(lambdas) / len(lambdas), "max": max(lambdas), "last": lambdas[-1]
        } if lambdas else None,
        "distance": distance,
    }  # fmt: skip
