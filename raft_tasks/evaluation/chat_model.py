"""lm-eval's transformers backend as a chat model: prompts as in training, nothing cut, progress reported.

Imports lm-eval, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from lm_eval.models import huggingface

from raft_tasks import chat
from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_network, load_tokenizer
from raft_tasks.thoughts import strip_thoughts


class ChatModel(huggingface.HFLM):
    """The model of a folder or hub id; a prompt that does not fit is an InputError.

    Args:
        progress: called with the number of items done so far.

    Raises:
        InputError: a model without chat template, or one that is not whole.
    """

    def __init__(self, settings: Model, batch_size: int, progress: Callable[[int], None]) -> None:
        self.system, self.progress, self.done = settings.system, progress, 0
        tokenizer = load_tokenizer(settings)
        network: Any = load_network(settings, getattr(torch, settings.dtype), tokenizer)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(pretrained=network.to(device), tokenizer=tokenizer, batch_size=batch_size, device=device)
        chat.check_chat(self.tokenizer, settings.system)
        generation = self.model.generation_config
        generation.eos_token_id = chat.stop_ids(self.tokenizer, generation.eos_token_id)  # not each model names its own

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return chat.render(self.tokenizer, self.system, chat_history, add_generation_prompt, not add_generation_prompt)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        with self.reporting(requests):
            answers = super().generate_until(requests, disable_tqdm=True)
        return [strip_thoughts(text)[0] for text in answers]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        with self.reporting(requests):
            return super().loglikelihood(requests, disable_tqdm=True)

    @contextmanager
    def reporting(self, requests: list[Any]) -> Iterator[None]:
        """Report what lm-eval tells its progress bar; an item may make several requests, one per choice."""
        items = len({(request.task_name, request.doc_id) for request in requests})
        before, progress = self.done, self.progress

        class Bar:
            answered = 0

            def __init__(self, iterable: Iterable[Any] = (), **_: Any) -> None:
                self.iterable = iterable

            def __iter__(self) -> Iterator[Any]:
                return iter(self.iterable)

            def update(self, count: int = 1) -> None:
                self.answered += count
                progress(before + items * self.answered // len(requests))

            def close(self) -> None:
                progress(before + items)

        with patch.object(huggingface, "tqdm", Bar):
            yield
        self.done += items

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, mask = super().tok_batch_encode(strings, padding_side, None, truncation)
        if left_truncate_len is not None and tokens.shape[1] > left_truncate_len:
            longest = strings[int(mask.sum(dim=1).argmax())]
            raise InputError(
                f"a prompt has {tokens.shape[1]} tokens, but of the model's {self.max_length} only "
                f"{left_truncate_len} are left beside the answer; shorten the item, lower the task's "
                f"max_gen_toks, or take the task out of benchmark.tasks. It begins {longest[:200]!r}"
            )
        return tokens, mask
