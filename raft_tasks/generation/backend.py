"""What draws text: the one interface of all backends."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, Protocol

from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Prompt


@dataclass(frozen=True)
class Failure:
    """Why a prompt has no usable completion.

    `empty`, `refused` and `filtered` are the model's or its provider's answer, and asking again would repeat it.
    `rejected` (the request cannot be served: too long, say) and `unreachable` (every try failed) are not cached.
    """

    kind: Literal["empty", "refused", "filtered", "rejected", "unreachable"]
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


@dataclass(frozen=True)
class Completion:
    text: str
    # The model ended its turn. False: cut at max_tokens or within a think block, failed, or its text spells a control
    # token, which nobody may learn.
    finished: bool
    tokens: int  # drawn, the end-of-turn token included
    prompt_tokens: int = 0
    tries: int = 1  # of an endpoint: 1 + those that failed
    failure: Failure | None = None  # the text is then empty
    raw: str = ""  # the whole turn, where it holds a thought, which the text does not


# a `Prompt` each; one each, to be thought about; raw text to continue; raw token ids to continue
Kind = Literal["chat", "thinking", "text", "tokens"]
Portion = list[tuple[int, Completion]]  # completions with their inputs' positions
GoOn = Callable[[], bool]


def always() -> bool:
    return True


class Backend(ABC):
    """Draws completions; what an input gets does not depend on the inputs beside it.

    It continues raw text or tokens too, as far as its model allows.
    """

    identity: dict[str, Any]  # all that determines the outputs beside input, params and seed, JSON-like

    @abstractmethod
    def call(self, kind: Kind, inputs: Sequence[Any], params: SamplingParams, seeds: Sequence[int]) -> list[Completion]:
        """One completion per input, in order, as `generate`."""

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, seeds: Sequence[int]) -> list[Completion]:
        """Draw one completion per prompt, in the prompts' order.

        Args:
            seeds: one per prompt, see `derive_seed`.

        A prompt that finally failed gets a completion with a `failure`: callers fall back or reject, the rest goes on.

        Raises:
            InputError: nothing can be drawn: a model that is not there, a key that is refused, a prompt that does not
                fit into a local model's context.
        """
        return self.call("chat", prompts, params, seeds)


class StreamingBackend(Backend):
    """... and hands every completion over as it comes, so that none is lost when the process dies."""

    @abstractmethod
    def stream(
        self, kind: Kind, inputs: Sequence[Any], params: SamplingParams, seeds: Sequence[int], go_on: GoOn = always
    ) -> Iterator[Portion]:
        """The completions in portions, in any order.

        Portions are the batches of a local model, so that one that was killed between two goes on with equal batches.
        Once `go_on` says no, nothing more is begun; what is in flight still comes, and the rest is left out.
        """

    def call(self, kind: Kind, inputs: Sequence[Any], params: SamplingParams, seeds: Sequence[int]) -> list[Completion]:
        pairs = [pair for portion in self.stream(kind, inputs, params, seeds) for pair in portion]
        return [completion for _, completion in sorted(pairs, key=itemgetter(0))]


class LikelihoodBackend(Protocol):
    """Says how likely it finds a text."""

    def mean_log_likelihood(self, prompts: Sequence[str], answers: Sequence[str], batch_size: int) -> list[float]:
        """Mean log-probability of the tokens of each answer, end-of-turn included, given its prompt; at most 0."""


class TextEncoder(Protocol):
    """Measures how alike texts are."""

    def similarities(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[float]:
        """cos(phi(a), phi(b)) in [-1, 1] of each pair."""


def replace_surrogates(text: str) -> str:
    """JSON can escape half a character, which no file takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
