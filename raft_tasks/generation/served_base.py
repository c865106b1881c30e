"""The base behind a server that continues raw text, through the base's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raft_tasks.chat import end_of_turn, prompt_ids
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import CallBackend, Completion, Kind
from raft_tasks.sampling import SamplingParams

if TYPE_CHECKING:
    from raft_tasks.generation.cached_backend import CachedBackend
    from raft_tasks.generation.transformers_backend import TransformersBackend


class ServedBase(CallBackend):
    """Prompts are those of training and benchmark, whatever the server's own template.

    The server must serve the base's weights, tokenize its prompts as the base's tokenizer does by default, and end a
    text at the template's ends of turns, as servers that read the model's generation config do.

    Args:
        endpoint: the server.
        base: only its tokenizer is used.
    """

    def __init__(self, endpoint: CallBackend, base: TransformersBackend | CachedBackend) -> None:
        self.endpoint, self.settings, self.tokenizer = endpoint, base.settings, base.tokenizer

    def call(self, kind: Kind, inputs: Sequence[Any], params: SamplingParams, seeds: Sequence[int]) -> list[Completion]:
        """As `CallBackend.call` for `chat` and `tokens`; the ends of a turn are the server's own.

        Raises:
            InputError: the server cannot continue a prompt; EndpointError: it serves none at all.
        """
        if kind == "chat":
            inputs = [prompt_ids(self.tokenizer, self.settings.system, prompt) for prompt in inputs]
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
        return [self._read(completion, params) for completion in completions]

    def _read(self, completion: Completion, params: SamplingParams) -> Completion:
        """Without the mark that ended it; unfinished where the server went on after another one. Not all show them."""
        text = completion.text
        for token in params.stop_token_ids:
            text = text.removesuffix(self.tokenizer.decode([token]))
        passed = any(self.tokenizer.decode([token]) in text for token in params.abort_token_ids)
        return replace(completion, text=text, finished=completion.finished and not passed)

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
