"""Text from a causal language model in this process: sampling and likelihoods, batched by length.

What a row gets does not depend on the rows that share its batch: every row brings its own seed, and its draws come
from its own stream. (Up to floating point: padding changes the last digits of the logits, which can move a draw that
falls within about 1e-6 of the boundary between two tokens.) So a resumed or grown run gives the old rows their
old texts.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from inspect import getsource
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_tasks import chat
from raft_tasks.artifacts import digest
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import Completion, in_order
from raft_tasks.params import Model

if TYPE_CHECKING:
    import torch


class TransformersBackend:
    """A model folder or pinned hub id; weights are loaded at the first use, onto the GPU where there is one.

    Threads may share one: it draws for one of them at a time.

    Args:
        identity: which bytes the model is (the stage `models` writes it down); the call store needs it.

    Raises (at the first use):
        InputError: the model is neither a folder nor on the hub, or cannot be chatted with.
    """

    def __init__(self, model: Model, identity: Mapping[str, Any] | None = None) -> None:
        self.settings = model
        self._bytes = identity
        self._one_at_a_time = threading.RLock()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The model's bytes, and the source of this module: a changed way of drawing draws other texts."""
        if self._bytes is None:
            raise ValueError("this backend was made without the model's identity")
        return {**self._bytes, "code": digest([getsource(sys.modules[__name__]), getsource(chat)])}

    @cached_property
    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = self._load(AutoTokenizer)
        chat.check_chat(tokenizer, self.settings.system)
        return tokenizer

    @cached_property
    def model(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        model = self._load(AutoModelForCausalLM, dtype=getattr(torch, self.settings.dtype)).to(self.device).eval()
        # The model's own sampling defaults (top_k 50, repetition penalties) must not add to the settings given here.
        ends = chat.stop_ids(self.tokenizer, model.generation_config.eos_token_id)
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=self.pad, do_sample=False)
        return model

    @cached_property
    def end_of_turn(self) -> int:
        """The token that the chat template puts after an answer."""
        return chat.end_of_turn(self.tokenizer)

    @cached_property
    def pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.end_of_turn if pad is None else int(pad)

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
        """As `Backend.generate` says.

        Raises:
            InputError: a prompt and its completion do not fit into the model's context; nothing is cut silently.
        """
        return self.continue_tokens(
            self._encode(prompts),
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seeds=seeds,
        )

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
        """As `StreamingBackend.stream` says, batch by batch."""
        return self._draw(
            self._encode(prompts),
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seeds=seeds,
            go_on=go_on,
        )

    def continue_tokens(
        self,
        prefixes: Sequence[Sequence[int]],
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch_size: int,
        seeds: Sequence[int],
        ends: Collection[int] = (),
        stops: Collection[int] = (),
    ) -> list[Completion]:
        """As `generate`, after raw token ids instead of user messages: the start of a user's turn, say.

        Args:
            ends: tokens that finish a completion beside the model's own ends.
            stops: tokens at which drawing stops too, but which leave the completion unfinished.
        """
        drawn = self._draw(
            prefixes,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seeds=seeds,
            ends=ends,
            stops=stops,
        )
        return in_order(drawn)

    def _draw(
        self,
        prefixes: Sequence[Sequence[int]],
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch_size: int,
        seeds: Sequence[int],
        ends: Collection[int] = (),
        stops: Collection[int] = (),
        go_on: Callable[[], bool] = lambda: True,
    ) -> Iterator[list[tuple[int, Completion]]]:
        import torch
        from transformers import LogitsProcessorList

        if len(prefixes) != len(seeds):
            raise ValueError(f"got {len(seeds)} seeds for {len(prefixes)} prompts")
        encoded = [list(prefix) for prefix in prefixes]
        self._check_lengths([len(ids) + max_new_tokens for ids in encoded])
        with self._one_at_a_time:  # loads it once
            finishing = {*self.model.generation_config.eos_token_id, *ends}
        stopping = {*finishing, *stops}
        for batch in _batches([len(ids) for ids in encoded], batch_size):
            if not go_on():
                return
            ids, mask = self._left_padded([encoded[i] for i in batch])
            processors = LogitsProcessorList()
            if temperature > 0:
                draws = _uniforms([seeds[i] for i in batch], max_new_tokens).to(self.device)
                processors.append(_Draw(draws, prompt_length=ids.shape[1], temperature=temperature, top_p=top_p))
            with self._one_at_a_time, torch.inference_mode():
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    logits_processor=processors,
                    eos_token_id=sorted(stopping),
                )
            portion = []
            for i, drawn in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                length = next((n for n, token in enumerate(drawn, start=1) if token in stopping), 0)
                kept = drawn[:length] if length else drawn
                text, thinking = chat.without_thoughts(self.tokenizer.decode(kept, skip_special_tokens=True))
                finished = length > 0 and kept[-1] in finishing and not thinking
                portion.append((i, Completion(text, finished, tokens=len(kept), prompt_tokens=len(encoded[i]))))
            yield portion

    def mean_log_likelihood(self, prompts: Sequence[str], answers: Sequence[str], batch_size: int) -> list[float]:
        """Mean log-probability of the tokens of each answer, end-of-turn included, given its prompt; at most 0."""
        import torch

        answer_ids = [[*ids, self.end_of_turn] for ids in self._tokens(answers)]
        encoded = [prompt + answer for prompt, answer in zip(self._encode(prompts), answer_ids, strict=True)]
        self._check_lengths([len(ids) for ids in encoded])
        means: dict[int, float] = {}
        for batch in _batches([len(ids) for ids in encoded], batch_size):
            ids, mask = self._left_padded([encoded[i] for i in batch])
            # With padding on the left, all answers end at the last position: just their logits are computed.
            kept = max(len(answer_ids[i]) for i in batch)
            with self._one_at_a_time, torch.inference_mode():
                logits = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                    logits_to_keep=kept + 1,
                ).logits[:, -kept - 1 : -1]
            targets = ids[:, -kept:]
            log_probs = -torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
            for i, row in zip(batch, log_probs.cpu(), strict=True):
                means[i] = row[-len(answer_ids[i]) :].mean().item()
        return [means[i] for i in range(len(prompts))]

    def _load(self, loader: Any, **options: Any) -> Any:
        path, revision = self.settings.path, self.settings.revision
        try:
            return loader.from_pretrained(path, revision=revision, **options)
        except (OSError, ValueError) as error:
            kind = "is not a folder here, nor" if not Path(path).is_dir() else "is a folder that cannot be loaded, not"
            raise InputError(f"model {path!r} {kind} a hub model at revision {revision}: {error}") from error

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        with self._one_at_a_time:
            return [chat.prompt_ids(self.tokenizer, self.settings.system, prompt) for prompt in prompts]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        with self._one_at_a_time:  # a tokenizer is no more for two threads than a model is
            return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def _check_lengths(self, lengths: list[int]) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and lengths and max(lengths) > limit:
            row = lengths.index(max(lengths))
            raise InputError(
                f"prompt {row} needs {lengths[row]} tokens with its completion, model {self.settings.path!r} takes "
                f"{limit}; lower ingest.max_characters or max_new_tokens"
            )

    def _left_padded(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask [B, T]."""
        import torch

        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device)
        return ids, mask


def _batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, the longest first: memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _uniforms(seeds: list[int], steps: int) -> torch.Tensor:
    """Uniform draws in [0, 1) [B, steps]; row i depends on seeds[i] alone. On the CPU: the same for every device."""
    import torch

    return torch.stack(
        [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    )


class _Draw:
    """A logits processor that decides the next token by inverse CDF, and leaves the greedy search just that one.

    The cumulative sum runs in the order of the vocabulary, not of the probabilities, where a rounding error that swaps
    two near-equal tokens would change the draw.
    """

    def __init__(self, draws: torch.Tensor, *, prompt_length: int, temperature: float, top_p: float) -> None:
        self.draws, self.prompt_length = draws, prompt_length
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] -> 0 at the drawn token, -inf elsewhere [B, V]."""
        import torch

        probs = torch.softmax(scores.double() / self.temperature, dim=-1)
        if self.top_p < 1:
            ordered, order = probs.sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered  # a token stays while those before it hold less than top_p
            probs = probs.masked_fill(
                torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, before >= self.top_p), 0
            )
        cumulative = probs.cumsum(-1)
        draws = self.draws[:, input_ids.shape[1] - self.prompt_length, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, draws, right=True)
        return torch.full_like(scores, float("-inf")).scatter(-1, tokens, 0.0)
