"""How text is drawn: the settings that every backend takes, and the seeded draw of models in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# By these a model ended its turn itself (OpenAI, TGI, Together, Anthropic, Cohere, AI21); with another reason, or none,
# its text was cut, filtered or is the call of a tool.
FINISHED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete", "endoftext")


def is_finished(reason: Any) -> bool:
    """Whether a server's finish reason says that the text is whole."""
    return isinstance(reason, str) and reason.lower() in FINISHED


@dataclass(frozen=True)
class SamplingParams:
    """What determines a completion beside model, prompt and seed, under vLLM's names; `batch_size` decides speed alone.

    Args:
        temperature: 0 takes the likeliest token; `top_p` and seeds then change nothing.
        top_p: draw among the likeliest tokens that together have this much probability.
        max_tokens: bound on the completion.
        batch_size: of a local model; an endpoint has its own concurrency.
        stop_token_ids: tokens that finish a completion beside the model's own ends.
        abort_token_ids: tokens at which drawing stops too, but which leave the completion unfinished.
        ignore_eos: draw `max_tokens` tokens past every end; the text then shows special tokens. Of a local model.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    batch_size: int = 1
    stop_token_ids: frozenset[int] = frozenset()
    abort_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False

    def cache_key(self, seed: int) -> list[Any]:
        """JSON-like: all of these settings, and the seed, that determine a completion."""
        drawn = [self.top_p, seed] if self.temperature > 0 else []
        ends = [sorted(self.stop_token_ids), sorted(self.abort_token_ids)]
        return [self.temperature, self.max_tokens, *ends, *drawn, *(["ignore_eos"] if self.ignore_eos else [])]


def uniform_draws(seeds: Sequence[int], steps: int) -> torch.Tensor:
    """Numbers in [0, 1), float64 [B, steps]; row i depends on seeds[i] alone. On the CPU: equal on all devices."""
    import torch

    return torch.stack(
        [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    )


class SeededDraw:
    """Draws the next token of every row by inverse CDF, for `decoding.decode`.

    One uniform number per row and step suffices, so each row has its own stream; `torch.multinomial` draws all rows
    from one generator. The cumulative sum runs in the vocabulary's order, not the probabilities', where a rounding
    error that swaps two near-equal tokens would change the draw.

    Args:
        draws: as `uniform_draws` [B, steps].
        dtype: of the probabilities.
    """

    def __init__(self, draws: torch.Tensor, temperature: float, top_p: float, dtype: torch.dtype) -> None:
        self.draws, self.temperature, self.top_p, self.dtype = draws, temperature, top_p, dtype
        self.log_probs = draws.new_zeros(draws.shape)  # of the drawn tokens, at the temperature, before top_p

    def __call__(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        """Logits [B, V] of rows [B] -> tokens [B]."""
        import torch

        log_probs = (logits.to(self.dtype) / self.temperature).log_softmax(-1)
        probs = log_probs.exp()
        if self.top_p < 1:
            ordered, order = probs.sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered  # a token stays while those before it hold less than top_p
            dropped = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            probs = probs.masked_fill(dropped, 0)
        cumulative = probs.cumsum(-1, dtype=torch.float64)
        total = cumulative[:, -1:]
        draws = self.draws[rows, step, None] * total
        draws = torch.minimum(draws, total.nextafter(torch.zeros_like(total)))  # rounding must not pass the last token
        tokens = torch.searchsorted(cumulative, draws, right=True)
        self.log_probs[rows, step] = log_probs.gather(-1, tokens).squeeze(-1).to(self.log_probs.dtype)
        return tokens.squeeze(-1)


def longest_first(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, the longest first: memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [B, T]."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
