"""lm-eval's transformers backend as a chat model: prompts as in training, nothing cut, progress reported.

Imports lm-eval, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from lm_eval.models import huggingface
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor

from raft_tasks import chat
from raft_tasks.config import Model
from raft_tasks.decoding import decode, greedy, greedy_until, is_greedy, is_of_keys, new_cache
from raft_tasks.errors import InputError
from raft_tasks.evaluation.shared_contexts import Request, Score, by_context, score_shared
from raft_tasks.model_loading import load_network, load_tokenizer
from raft_tasks.thoughts import strip_thoughts

T = TypeVar("T")


class Reply(str):
    """An answer, as lm-eval scores it; `turn` is the whole turn, with its thought."""

    turn: str

    @classmethod
    def of(cls, answer: str, turn: str) -> Reply:
        reply = cls(answer)
        reply.turn = turn
        return reply


class ChatModel(huggingface.HFLM):
    """The model of a folder or hub id; a prompt that does not fit is an InputError.

    With `thinking` set, prompts ask for a thought, which has `settings.thought_tokens` beside those of the answer; a
    task's stop sequences end the answer, not the thought.

    Args:
        progress: called with the number of items done so far.
        plain_tasks: lm-eval tasks asked without the chat template; all others are tokenized as in training.

    Raises:
        InputError: a model without chat template, or one that is not whole.
    """

    def __init__(
        self,
        settings: Model,
        batch_size: int,
        progress: Callable[[int], None],
        plain_tasks: Collection[str] = (),
    ) -> None:
        self.system, self.thought_tokens, self.thinking = settings.system, settings.thought_tokens, False
        self.progress, self.done, self.plain_tasks = progress, 0, plain_tasks
        tokenizer = load_tokenizer(settings)
        network: Any = load_network(settings, getattr(torch, settings.dtype), tokenizer)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(
            pretrained=network.to(device), tokenizer=tokenizer, batch_size=batch_size, device=device,
            softmax_dtype="float32",  # a sum in bfloat16 is rounded by .25 or more: choices would tie
        )  # fmt: skip
        chat.check_chat(self.tokenizer, settings.system, settings.thinking)
        generation = self.model.generation_config
        generation.eos_token_id = chat.stop_ids(self.tokenizer, generation.eos_token_id)  # not each model names its own

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return chat.render(
            self.tokenizer, self.system, chat_history, add_generation_prompt, not add_generation_prompt, self.thinking
        )

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        stops = [self._stops(request.args[1]) for request in requests] if self.thinking else [[] for _ in requests]
        asked = [self._with_thought(request) for request in requests] if self.thinking else requests
        with self.reporting(requests):
            turns = self._by_form(asked, partial(super().generate_until, disable_tqdm=True))
        opened = chat.opening_of_thoughts(self.tokenizer, self.system) if self.thinking else ""
        answers = [strip_thoughts(opened + turn)[0] for turn in turns]
        return [
            Reply.of(postprocess_generated_text(answer, stop, None), opened + turn)
            for answer, stop, turn in zip(answers, stops, turns, strict=True)
        ]

    @torch.inference_mode()
    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], *, attention_mask: Tensor, **options: Any
    ) -> Tensor:
        """lm-eval's; where decoding is greedy and nothing else, rows leave the batch when they end."""
        ends: list[int] = self.model.generation_config.eos_token_id
        if any(options.values()) or not is_greedy(self.model.generation_config):
            return super()._model_generate(context, max_length, stop, attention_mask=attention_mask, **options)
        prompts = [row[seen].tolist() for row, seen in zip(context, attention_mask.bool(), strict=True)]
        stops = [text for text in stop if self.tokenizer.convert_tokens_to_ids(text) not in ends]
        choose = greedy_until(stops, self.tokenizer, ends[0]) if stops else greedy
        answers = decode(self.model, prompts, choose, ends, max_length - context.shape[1])
        longest = max(map(len, answers))
        padded = [answer + [self.tokenizer.pad_token_id] * (longest - len(answer)) for answer in answers]
        return torch.cat([context, context.new_tensor(padded)], dim=1)

    def _stops(self, options: dict[str, Any]) -> list[str]:
        return list(normalize_gen_kwargs(options, self.max_gen_toks).get("until") or [])

    def _with_thought(self, request: Any) -> Any:
        options: dict[str, Any] = normalize_gen_kwargs(request.args[1], self.max_gen_toks)
        options |= {"until": [], "max_gen_toks": options["max_gen_toks"] + self.thought_tokens}
        return replace(request, arguments=(request.args[0], options))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        with self.reporting(requests):
            return self._by_form(requests, partial(super().loglikelihood, disable_tqdm=True))

    def _by_form(self, requests: list[Any], answer: Callable[[list[Any]], list[T]]) -> list[T]:
        """The answers in order. The chat template writes its own special tokens; plain texts get those of lm-eval."""
        answers: dict[int, T] = {}
        for plain in (False, True):
            numbers = [n for n, request in enumerate(requests) if (request.task_name in self.plain_tasks) == plain]
            self.add_bos_token = None if plain else False  # None: what the tokenizer does by itself
            answers.update(zip(numbers, answer([requests[n] for n in numbers]) if numbers else (), strict=True))
        return [answers[n] for n in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Score]:
        for (text, _), context, told in requests:  # lm-eval would cut the context from the left
            if len(context) + len(told) > self.max_length + 1:  # the last token is not read
                raise InputError(
                    f"a prompt has {len(context)} tokens and its answer {len(told)}, but the model reads "
                    f"{self.max_length}; shorten the item, lower benchmark.few_shot, or take the task out of "
                    f"benchmark.tasks. It begins {text[:200]!r}"
                )
        shared, others = by_context(requests)
        if not is_of_keys(new_cache(self.model)):
            shared, others = [], list(range(len(requests)))
        scores: dict[int, Score] = {}
        bar = huggingface.tqdm(total=len(requests))

        def scored(number: int, score: Score) -> None:
            scores[number] = score
            bar.update()

        score_shared(self.model, requests, shared, self.batch_size, scored)
        rest = super()._loglikelihood_tokens([requests[number] for number in others], disable_tqdm, override_bs)
        scores.update(zip(others, rest, strict=True))
        return [scores[number] for number in range(len(requests))]

    @contextmanager
    def reporting(self, requests: list[Any]) -> Iterator[None]:
        """Report what lm-eval tells its progress bar; an item may make several requests, one per choice."""
        items = len({(request.task_name, request.doc_id) for request in requests})
        before, progress = self.done, self.progress

        class Bar:
            answered = 0  # of all bars

            def __init__(self, iterable: Iterable[Any] = (), **_: Any) -> None:
                self.iterable = iterable

            def __iter__(self) -> Iterator[Any]:
                return iter(self.iterable)

            def update(self, count: int = 1) -> None:
                Bar.answered += count
                progress(before + items * Bar.answered // len(requests))

            def close(self) -> None:
                pass

        with patch.object(huggingface, "tqdm", Bar):
            yield
        progress(before + items)
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
                f"max_gen_toks, where the model thinks models.base.thought_tokens, or take the task out of "
                f"benchmark.tasks. It begins {longest[:200]!r}"
            )
        return tokens, mask
