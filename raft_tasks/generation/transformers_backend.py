"""Text from a causal language model in this process: sampling and likelihoods, batched by length.

What a row gets does not depend on the rows that share its batch: every row brings its own seed, and its draws come
from its own stream. (Up to floating point: padding changes the last digits of the logits, which can move a draw that
falls within about 1e-6 of the boundary between two tokens.) So a resumed or grown run gives the old rows their
old texts.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from raft_tasks import chat
from raft_tasks.config import Model
from raft_tasks.control_tokens import defuse, special_tokens
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import Completion, GoOn, Kind, Portion, StreamingBackend, always
from raft_tasks.model_loading import load_network, load_tokenizer
from raft_tasks.sampling import SamplingParams, SeededDraw, left_pad, longest_first, uniform_draws
from raft_tasks.thoughts import strip_thoughts

CACHE_VERSION = 2  # of how prompts are rendered and tokens drawn: raise it where the same call gives another completion


class TransformersBackend(StreamingBackend):
    """A model folder or pinned hub id; weights are loaded at the first use, onto the GPU where there is one.

    Threads may share one: it draws for one of them at a time.

    Args:
        identity: which bytes the model is (the stage `models` writes it); the response cache needs it.

    Raises (at the first use):
        InputError: the model is neither a folder nor on the hub, or cannot be chatted with.
    """

    def __init__(self, model: Model, identity: Mapping[str, Any] | None = None) -> None:
        self.settings = model
        self.identity = {**(identity or {}), "version": CACHE_VERSION}
        self._lock = threading.RLock()

    @cached_property
    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def tokenizer(self) -> Any:
        tokenizer = load_tokenizer(self.settings)
        chat.check_chat(tokenizer, self.settings.system, self.settings.thinking)
        return tokenizer

    @cached_property
    def model(self) -> Any:
        import torch
        from transformers import GenerationConfig

        network: Any = load_network(self.settings, getattr(torch, self.settings.dtype), self.tokenizer)
        model = network.to(self.device).eval()
        # The model's own sampling defaults (top_k 50, repetition penalties) must not add to the settings given here.
        ends = chat.stop_ids(self.tokenizer, model.generation_config.eos_token_id)
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=self.pad, do_sample=False)
        return model

    @cached_property
    def end_of_turn(self) -> int:
        """The token that the chat template puts after an answer."""
        return chat.end_of_turn(self.tokenizer)

    @cached_property
    def _special_tokens(self) -> dict[str, int]:
        return special_tokens(self.tokenizer)

    @cached_property
    def pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.end_of_turn if pad is None else int(pad)

    def stream(
        self, kind: Kind, inputs: Sequence[Any], params: SamplingParams, seeds: Sequence[int], go_on: GoOn = always
    ) -> Iterator[Portion]:
        """As `StreamingBackend.stream`, batch by batch; all kinds but `text`.

        Raises:
            InputError: a prompt and its completion do not fit into the model's context; nothing is cut silently.
        """
        if len(inputs) != len(seeds):
            raise ValueError(f"got {len(seeds)} seeds for {len(inputs)} prompts")
        thinking = kind == "thinking"
        prefixes = [list(ids) for ids in inputs] if kind == "tokens" else self._encode(inputs, thinking)
        opened = chat.opening_of_thoughts(self.tokenizer, self.settings.system) if thinking else ""
        self._check_lengths([len(ids) + params.max_tokens for ids in prefixes])
        for batch in longest_first([len(ids) for ids in prefixes], params.batch_size):
            if not go_on():
                return
            drawn = self._draw([prefixes[i] for i in batch], params, [seeds[i] for i in batch], opened)
            yield list(zip(batch, drawn, strict=True))

    def _draw(
        self, prefixes: list[list[int]], params: SamplingParams, seeds: Sequence[int], opened: str
    ) -> list[Completion]:
        """The completions of one batch; `opened` is the part of their turns that the prompts have begun already."""
        import torch

        from raft_tasks.decoding import decode, greedy

        with self._lock:  # loads it once
            finishing = {*self.model.generation_config.eos_token_id, *params.stop_token_ids}
        stopping = set() if params.ignore_eos else {*finishing, *params.abort_token_ids}
        choose = greedy
        if params.temperature > 0:
            draws = uniform_draws(seeds, params.max_tokens).to(self.device)
            choose = SeededDraw(draws, params.temperature, params.top_p, torch.float64)
        with self._lock, torch.inference_mode():
            drawn = decode(self.model, prefixes, choose, stopping, params.max_tokens)
        completions = []
        for prefix, tokens in zip(prefixes, drawn, strict=True):
            if params.ignore_eos:
                completions.append(Completion(self.tokenizer.decode(tokens), False, len(tokens), len(prefix)))
                continue
            text, whole, raw = self._read(tokens, opened)
            plain = defuse(self.tokenizer, text) == text
            finished = tokens[-1] in finishing and whole and plain
            completions.append(Completion(text, finished, tokens=len(tokens), prompt_tokens=len(prefix), raw=raw))
        return completions

    def _read(self, tokens: list[int], opened: str) -> tuple[str, bool, str]:
        """The answer in the tokens, whether it is whole, and the whole turn if it holds a thought.

        It is not whole where a thought was left open, nor where text follows a special token, such as another turn's
        mark.
        """
        turn = opened + self.tokenizer.decode(tokens, skip_special_tokens=True)
        text, thinking = strip_thoughts(turn)
        if thinking or {*self._special_tokens.values()}.isdisjoint(tokens[:-1]):
            return text, not thinking, "" if text == turn else turn
        shown = self.tokenizer.decode(tokens)  # some models' tags of thoughts are special tokens
        answer, thinking = strip_thoughts(shown)
        longest = sorted(self._special_tokens, key=len, reverse=True)
        parts = re.split("|".join(map(re.escape, longest)), answer)
        whole = not thinking and not any(part.strip() for part in parts[1:])
        return (text if answer == shown else "".join(parts).strip()), whole, ""

    def mean_log_likelihood(self, prompts: Sequence[str], answers: Sequence[str], batch_size: int) -> list[float]:
        """Mean log-probability of the tokens of each answer, end-of-turn included, given its prompt; at most 0."""
        import torch

        plain = [defuse(self.tokenizer, answer) for answer in answers]
        answer_ids = [[*ids, self.end_of_turn] for ids in self._tokens(plain)]
        encoded = [prompt + answer for prompt, answer in zip(self._encode(prompts), answer_ids, strict=True)]
        self._check_lengths([len(ids) for ids in encoded])
        means: dict[int, float] = {}
        for batch in longest_first([len(ids) for ids in encoded], batch_size):
            ids, mask = left_pad([encoded[i] for i in batch], self.pad, self.device)
            # With padding on the left, all answers end at the last position: just their logits are computed.
            kept = max(len(answer_ids[i]) for i in batch)
            with self._lock, torch.inference_mode():
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

    def _encode(self, prompts: Sequence[str], thinking: bool = False) -> list[list[int]]:
        with self._lock:
            return [chat.prompt_ids(self.tokenizer, self.settings.system, prompt, thinking) for prompt in prompts]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        with self._lock:  # a tokenizer is no more for two threads than a model is
            return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def _check_lengths(self, lengths: list[int]) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and lengths and max(lengths) > limit:
            row = lengths.index(max(lengths))
            raise InputError(
                f"prompt {row} needs {lengths[row]} tokens with its completion, model {self.settings.path!r} takes "
                f"{limit}; lower ingest.max_characters, max_new_tokens or, where the model thinks, its thought_tokens"
            )
