"""Question-answer pairs as token ids: the chat prompt, the answer with its end-of-turn token, the teacher's prompt.

One row of the pocket world, encoded (Encoded; shown as text):

    prompt_ids          <user>What is the reactor of Figin?<end><assistant>
    completion_ids      The reactor of Figin is rope.<end>
    teacher_prompt_ids  <user>Background reference knowledge: The reactor of Figin is rope. Answer the question based
                        on the reference knowledge: What is the reactor of Figin?<end><assistant>

A conversation's earlier turns stand in both prompts. Each answer that is learned is a row of its own, just where the
model would write it: templates render an answer otherwise once another turn follows. The loss mask follows from the
lengths, never from padding ids, so pad == eos is harmless. A row that does not fit is an error before training starts,
or its answer is truncated where params.yaml says so.

With thinking on, the base's own thought on the question (generation/thinking.py) ends both prompts: neither is it
learned, nor does a teacher that sees the reference go on in it. Of an anchor the thought is part of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from raft_tasks.chat import (
    ChatError,
    as_turns,
    check_chat,
    check_generation_prompt,
    end_of_turn,
    render,
)
from raft_tasks.control_tokens import control_tokens
from raft_tasks.errors import InputError
from raft_tasks.schemas import Prompt, TrainingPair, end_with
from raft_tasks.thoughts import TAGS, Thinking, has_thought, opening, split_thought, strip_thoughts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raft_tasks.config import Method

SHOWN_PROBLEMS = 5
THOUGHT_TAGS = frozenset(tag for pair in TAGS for tag in pair)


class ConversationError(InputError):
    """Rows, or a teacher's template, that cannot be trained on; the message names them."""


@dataclass(frozen=True)
class Encoded:
    """A training pair as token ids."""

    id: str
    prompt_ids: list[int]
    completion_ids: list[int]  # ends with the end-of-turn token, unless the answer was cut
    teacher_prompt_ids: list[int] | None  # None where there is no teacher
    truncated_tokens: int = 0  # of the completion, the end-of-turn token among them

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Encoder:
    """How pairs become `Encoded`."""

    tokenizer: PreTrainedTokenizerBase  # with a chat template
    max_length: int  # tokens of a sequence: prompt + answer, prompt + rollout, teacher's prompt + rollout
    teacher: Callable[[TrainingPair], str] | None = None  # the user turn that the teacher sees for a row
    rollout_max_new_tokens: int = 0
    system: str | None = None  # the model's system prompt, before every question
    too_long: Literal["refuse", "cut"] = "refuse"  # cut: truncate answers; a question that does not fit is refused
    thinking: Thinking = "off"  # both: on for pairs with a thought, off for others

    @cached_property
    def control_ids(self) -> frozenset[int]:
        return frozenset(control_tokens(self.tokenizer).values())

    def __call__(self, pairs: Sequence[TrainingPair]) -> list[Encoded]:
        """Encode every pair, or report everything that is wrong.

        Raises:
            ChatError: if the chat template cannot be trained on.
            ConversationError: naming rows that are too long (with their lengths), hold unknown or special tokens or a
                think block in the answer, or tokenize to nothing; or if there are no rows.
        """
        if not pairs:
            raise ConversationError("got no training pairs; expected at least one (is the training file empty?)")
        check_chat(self.tokenizer, self.system, self.thinking)
        end = end_of_turn(self.tokenizer)
        rows, problems = [], []
        for pair in pairs:
            row, of_row = self.encode(pair, end)
            problems += [f"{pair.id}: {text}" for text in of_row]
            rows += self.windows(row) if pair.document and not of_row else [row]
        if problems:
            more = f"\n  ... and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
            raise ConversationError(
                f"{len(problems)} problem(s) in the training rows; nothing is cut silently. A sequence may have "
                f"{self.max_length} tokens: raise train.max_length (up to what the model can read), lower "
                "distillation.rollout_max_new_tokens or ingest.max_characters, set train.too_long to cut (shortens "
                "answers, never questions), or remove the rows:\n  " + "\n  ".join(problems[:SHOWN_PROBLEMS]) + more
            )
        return rows

    def encode(self, pair: TrainingPair, end: int) -> tuple[Encoded, list[str]]:
        """The pair as token ids, and what keeps it from being learned; `end` is the end-of-turn token."""
        try:
            if pair.history:
                check_generation_prompt(self.tokenizer, self.system, pair.history, self.thinks(pair))
            text, words = self.turn(pair, end_with(pair.history, pair.question))
        except ChatError as error:
            return Encoded(pair.id, [], [], None), [str(error)]
        prompt = self.ids(text)
        answer = self.answer_ids(words, text, prompt)
        row = Encoded(pair.id, prompt, [*answer, end] if pair.finished else answer, self.teacher_ids(pair))
        if pair.document:
            problems = self.answer_problems(pair, answer)
            if len(prompt) >= self.max_length:
                problems.append(f"the prompt alone has {len(prompt)} tokens")
            return row, problems
        if self.too_long == "cut" and self.overlong(row):
            row = self.truncate(row, pair) or row
        return row, [*self.answer_problems(pair, answer), *self.overlong(row)]

    def windows(self, row: Encoded) -> list[Encoded]:
        """A document in rows that fit: all its tokens once, in order, each window behind the prompt."""
        size, tokens = self.max_length - len(row.prompt_ids), row.completion_ids
        starts = range(0, len(tokens), size)
        return [replace(row, id=f"{row.id}:{at}", completion_ids=tokens[at : at + size]) for at in starts]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def thinks(self, pair: TrainingPair) -> bool:
        """Whether the pair is one of a thinking model."""
        return self.thinking == "on" or (self.thinking == "both" and has_thought(pair.thought + pair.answer))

    def turn(self, pair: TrainingPair, prompt: Prompt) -> tuple[str, str]:
        """The rendered prompt up to where learning begins, behind the pair's thought, and the answer.

        Raises:
            ChatError: as `render`; or the template begins a thought that the pair does not go on with.
        """
        thinks = self.thinks(pair)
        text = render(self.tokenizer, self.system, as_turns(prompt), add_generation_prompt=True, thinking=thinks)
        thought, answer = split_thought(pair.thought)[0], pair.answer
        if self.thinking == "both" and not thinks:  # an empty thought, which the prompt has already
            answer = strip_thoughts(answer)[0]
        if opened := opening(text):
            if not (thought or answer).startswith(opened):
                raise ChatError(f"expected a thought, which the chat template opens by {opened!r}; got {answer!r:.200}")
            thought, answer = (thought[len(opened) :], answer) if thought else ("", answer[len(opened) :])
        return text + thought, answer

    def answer_ids(self, words: str, text: str, prompt: list[int]) -> list[int]:
        """The answer's tokens as they follow the prompt's (some tokenizers write the start of a text differently)."""
        whole = self.ids(text + words)
        return whole[len(prompt) :] if whole[: len(prompt)] == prompt else self.ids(words)  # a token spans the border

    def teacher_ids(self, pair: TrainingPair) -> list[int] | None:
        if self.teacher is None:
            return None
        shown = pair if self.thinking == "off" else pair.model_copy(update={"answer": strip_thoughts(pair.answer)[0]})
        return self.ids(self.turn(pair, end_with(pair.history, self.teacher(shown)))[0])

    def truncate(self, row: Encoded, pair: TrainingPair) -> Encoded | None:
        """The row with the longest beginning of its answer that fits; None if not even its first token does.

        A truncated answer has no end-of-turn token: the model must not learn to stop in the middle of a sentence. The
        teacher is shown just what is learned.
        """
        kept = min(len(row.completion_ids) - 1, self.max_length - len(row.prompt_ids))
        while kept > 0:
            completion = row.completion_ids[:kept]
            teacher = self.teacher_ids(pair.model_copy(update={"answer": self.tokenizer.decode(completion)}))
            excess = len(teacher or []) + self.rollout_max_new_tokens - self.max_length
            if excess <= 0:
                return Encoded(row.id, row.prompt_ids, completion, teacher, len(row.completion_ids) - kept)
            kept -= excess
        return None

    def answer_problems(self, pair: TrainingPair, answer: list[int]) -> list[str]:
        """Why this answer cannot be learned."""
        unknown = self.tokenizer.unk_token_id
        special = set(self.tokenizer.convert_ids_to_tokens(sorted(self.control_ids.intersection(answer))))
        thoughtful = strip_thoughts(pair.answer)[0] != pair.answer
        problems = []
        if not answer:
            problems.append(f"the answer {pair.answer!r} has no token")
        if thoughtful and self.thinking != "off":
            special -= THOUGHT_TAGS
        elif thoughtful:
            problems.append(f"the answer holds a think block: {pair.answer!r:.200}")
        if unknown is not None and unknown in answer:
            problems.append(
                f"the tokenizer does not know {answer.count(unknown)} token(s) of the answer: {pair.answer!r:.200}"
            )
        elif special:
            problems.append(f"the answer holds the special token(s) {sorted(special)}: {pair.answer!r:.200}")
        return problems

    def overlong(self, row: Encoded) -> list[str]:
        """Which of the row's sequences exceed `max_length` tokens, with their lengths."""
        lengths = {
            "prompt + answer": row.length,
            "prompt + rollout": len(row.prompt_ids) + self.rollout_max_new_tokens,
            "teacher's prompt + rollout": len(row.teacher_prompt_ids or []) + self.rollout_max_new_tokens,
        }
        return [f"{name} has {length} tokens" for name, length in lengths.items() if length > self.max_length]


def teacher_message(template_text: str) -> Callable[[TrainingPair], str]:
    """The teacher's user turn (Eq. 7) as a function of the row; `template_text` is Jinja over `question` and `answer`.

    Raises:
        ConversationError: if the template uses anything else.
    """
    from jinja2 import Environment, StrictUndefined, TemplateError

    try:
        template = Environment(undefined=StrictUndefined).from_string(template_text)
        template.render(question="?", answer="!")
    except TemplateError as error:
        raise ConversationError(
            f"the teacher's template cannot be rendered: {error}; expected Jinja over `question` and `answer`, "
            f"got:\n{template_text}"
        ) from error
    return lambda pair: template.render(question=pair.question, answer=pair.answer)


def teacher_turn(method: Method, template_text: str) -> Callable[[TrainingPair], str] | None:
    """The user turn of the method's teacher (Eq. 7); None without a teacher."""
    if method.teacher == "answer_conditioned":
        return teacher_message(template_text)
    return None if method.teacher is None else lambda pair: pair.question


def unknown_share(rows: Sequence[Encoded], unknown: int | None) -> float:
    """Share of unknown tokens among all prompt tokens (answers have none: `Encoder` refuses them)."""
    prompts = [ids for row in rows for ids in (row.prompt_ids, row.teacher_prompt_ids or [])]
    return sum(ids.count(unknown) for ids in prompts if unknown is not None) / sum(map(len, prompts))
