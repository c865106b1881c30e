"""What draws text: the one protocol of all backends, and the backend that a model of params.yaml stands for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, Protocol

from raft_tasks.params import Endpoint, Model


@dataclass(frozen=True)
class Failure:
    """Why a prompt has no usable completion.

    `empty`, `refused` and `filtered` are the model's or its provider's answer, and asking again would repeat it.
    `rejected` (the request cannot be served: too long, say) and `unreachable` (every try failed) are not remembered.
    """

    kind: Literal["empty", "refused", "filtered", "rejected", "unreachable"]
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


@dataclass(frozen=True)
class Completion:
    text: str
    finished: bool  # the model ended its turn; False: cut at max_new_tokens or within a think block, or failed
    tokens: int  # drawn, the end-of-turn token included
    prompt_tokens: int = 0
    tries: int = 1  # of an endpoint: 1 + those that failed
    failure: Failure | None = None  # the text is then empty


class Backend(Protocol):
    """Draws completions; what a prompt gets does not depend on the prompts beside it."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines the outputs beside prompt, settings and seed, as a JSON-like value."""

    def generate(
        self,
        prompts: Sequence[str],
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch_size: int,
        seeds: Sequence[int],
    ) -> list[Completion]:
        """Draw one completion per prompt, in the prompts' order. Each prompt is one user message.

        Args:
            temperature: 0 takes the likeliest token; `top_p` and `seeds` then change nothing.
            top_p: draw among the likeliest tokens that together hold this much probability.
            batch_size: of a local model; an endpoint has its own concurrency.
            seeds: one per prompt, see `row_seed`.

        A prompt that finally failed gets a completion with a `failure`: callers fall back or reject, the rest goes on.

        Raises:
            InputError: nothing can be drawn: a model that is not there, a key that is refused.
        """


class StreamingBackend(Backend, Protocol):
    """... and hands every completion over as it comes, so that none is lost when the process dies."""

    def stream(
        self,
        prompts: Sequence[str],
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch_size: int,
        seeds: Sequence[int],
        go_on: Callable[[], bool],
    ) -> Iterator[list[tuple[int, Completion]]]:
        """As `generate`: portions of pairs of a prompt's position and its completion, in any order.

        Portions are the batches of a local model, so that one that was killed between two goes on with equal batches.
        Once `go_on` says no, nothing more is begun; what is in flight still comes, and the rest is left out.
        """


class LikelihoodBackend(Backend, Protocol):
    """... and says how likely it finds a text."""

    def mean_log_likelihood(self, prompts: Sequence[str], answers: Sequence[str], batch_size: int) -> list[float]:
        """Mean log-probability of the tokens of each answer, end-of-turn included, given its prompt; at most 0."""


class TextEncoder(Protocol):
    """Measures how alike texts are."""

    def similarities(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[float]:
        """cos(phi(a), phi(b)) in [-1, 1] of each pair."""


def in_order(portions: Iterable[list[tuple[int, Completion]]]) -> list[Completion]:
    """What `stream` yields, in the prompts' order."""
    return [
        completion for _, completion in sorted((pair for portion in portions for pair in portion), key=itemgetter(0))
    ]


def row_seed(seed: int, *parts: str | int) -> int:
    """A 63-bit seed for one draw of one row, e.g. row_seed(settings.seed, row.id, round, candidate)."""
    text = "\x1f".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def build_backend(model: Model | Endpoint, identity: Mapping[str, Any]) -> StreamingBackend:
    """The backend of an entry of `models`; `identity` is what the stage `models` wrote down for it."""
    if isinstance(model, Endpoint):
        from raft_tasks.generation.endpoint_backend import EndpointBackend

        return EndpointBackend(model, identity)
    from raft_tasks.generation.transformers_backend import TransformersBackend

    return TransformersBackend(model, identity)
