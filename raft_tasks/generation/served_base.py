"""The base behind a server that continues raw text, through the base's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raft_tasks.chat import end_of_turn, opening_of_thoughts, prompt_ids
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import Backend, Completion, Kind
from raft_tasks.sampling import SamplingParams
from raft_tasks.thoughts import strip_thoughts

if TYPE_CHECKING:
    from raft_tasks.generation.cached_backend import CachedBackend
    from raft_tasks.generation.transformers_backend import TransformersBackend


class ServedBase(Backend):
    """Prompts are those of training and benchmark, whatever the server's own template.

    The server must serve the base's weights, tokenize its prompts as the base's tokenizer does by default, and end a
    text at the template's ends of turns, as servers that read the model's generation config do.

    Args:
        endpoint: the server.
        base: only its tokenizer is used.
    """

    def __init__(self, endpoint: Backend, base: TransformersBackend | CachedBackend) -> None:
        self.endpoint, self.settings, self.tokenizer = endpoint, base.settings, base.tokenizer

    def call(self, kind: Kind, inputs: Sequence[Any], params: SamplingParams, seeds: Sequence[int]) -> list[Completion]:
        """As `Backend.call` for all kinds but `text`; the ends of a turn are the server's own.

        Raises:
            InputError: the server cannot continue a prompt, or serves none at all.
        """
        thinking = kind == "thinking"
        if kind != "tokens":
            inputs = [prompt_ids(self.tokenizer, self.settings.system, prompt, thinking) for prompt in inputs]
            params = replace(params, stop_token_ids=frozenset({end_of_turn(self.tokenizer)}))
        texts = {prefix: self._as_text(prefix) for prefix in {tuple(prefix) for prefix in inputs}}
        completions = self.endpoint.call("text", [texts[tuple(prefix)] for prefix in inputs], params, seeds)
        failed = [completion.failure for completion in completions if completion.failure]
        if failed:
            raise InputError(
                f"{len(failed)} of {len(completions)} prompts have no continuation: {failed[0]}. Anchors need a server "
                "that continues raw text (POST <base_url>/completions); a chat API cannot generate a user's turn. Mend "
                "the server, or set anchors.*.model to base"
            )
        opened = opening_of_thoughts(self.tokenizer, self.settings.system) if thinking else ""
        return [self._read(completion, params, opened) for completion in completions]

    def _read(self, completion: Completion, params: SamplingParams, opened: str) -> Completion:
        """Without the mark that ended it; unfinished where the server went on after another one. Not all show them.

        `opened` is the part of the turn that the prompt has begun already.
        """
        turn = opened + (completion.raw or completion.text)
        for token in params.stop_token_ids:
            turn = turn.removesuffix(self.tokenizer.decode([token]))
        text, is_open = strip_thoughts(turn)
        passed = any(self.tokenizer.decode([token]) in text for token in params.abort_token_ids)
        finished = completion.finished and not passed and not is_open
        return replace(completion, text=text, finished=finished, raw="" if text == turn else turn)

    def _as_text(self, prefix: Sequence[int]) -> str:
        """The text that the server's tokenizer, with what it puts before every text, turns into these tokens."""
        text = str(self.tokenizer.decode(prefix))
        for candidate in (text, text.removeprefix(self.tokenizer.decode(prefix[:1]))):
            if self.tokenizer(candidate)["input_ids"] == list(prefix):
                return candidate
        raise InputError(
            f"the tokenizer {self.tokenizer.name_or_path!r} does not make the same tokens of the text {text[:200]!r} "
            "again, so no server can continue it; set anchors.*.model to base"
        )
