"""Question-answer pairs as token ids: the chat prompt, the answer with its end-of-turn token, the teacher's prompt.

One row of the pocket world, encoded (Encoded; shown as text):

    prompt          <user>What is the reactor of Figin?<end><assistant>
    answer          The reactor of Figin is rope.<end>
    teacher_prompt  <user>Background reference knowledge: The reactor of Figin is rope.
                    Answer the question based on the reference knowledge: What is the reactor of Figin?<end><assistant>

Which positions are learned follows from these lengths, never from padding ids, so pad == eos is harmless. A row that
does not fit is an error before training starts, or loses the tail of its answer where params.yaml says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raft_tasks.chat import check_chat, end_of_turn, prompt_ids, render
from raft_tasks.errors import InputError
from raft_tasks.schemas import TrainingPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_PROBLEMS = 5


class ConversationError(InputError):
    """Rows, or a teacher's template, that cannot be trained on; the message names them."""


@dataclass(frozen=True)
class Encoded:
    """A training pair as token ids."""

    id: str
    prompt: list[int]
    answer: list[int]  # ends with the end-of-turn token, unless it was cut
    teacher_prompt: list[int] | None  # None where there is no teacher
    cut: int = 0  # tokens that the answer lost to the length bound, the end-of-turn token among them


def teacher_message(template_text: str) -> Callable[[TrainingPair], str]:
    """The teacher's user turn (Eq. 7) as a function of the row; `template_text` is Jinja over `question` and `answer`.

    Raises:
        ConversationError: if the template asks for anything else.
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


def encode_pairs(
    pairs: Sequence[TrainingPair],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    teacher: Callable[[TrainingPair], str] | None = None,
    rollout_max_new_tokens: int = 0,
    system: str | None = None,
    too_long: Literal["refuse", "cut"] = "refuse",
) -> list[Encoded]:
    """Encode every pair, or say everything that is wrong.

    Args:
        pairs: what is learned.
        tokenizer: with a chat template.
        max_length: tokens that a sequence may have: prompt + answer, prompt + rollout, teacher's prompt + rollout.
        teacher: the user turn that the teacher sees for a row; None without a teacher.
        rollout_max_new_tokens: of the rollouts that will follow the prompts; 0 without a teacher.
        system: the model's system prompt, before every question.
        too_long: what happens to a row that does not fit: refuse it, or `cut` the tail of its answer. A question that
            does not fit is always refused.

    Raises:
        ChatError: if the chat template cannot be trained on.
        ConversationError: naming rows that are too long (with their lengths), hold unknown or special tokens or a
            think block in the answer, or tokenize to nothing; or if there are no rows.
    """
    if not pairs:
        raise ConversationError("got no training pairs; expected at least one (is the training file empty?)")
    check_chat(tokenizer, system)
    end = end_of_turn(tokenizer)
    unknown, special = tokenizer.unk_token_id, set(tokenizer.all_special_ids)

    def teacher_ids(pair: TrainingPair) -> list[int] | None:
        return None if teacher is None else prompt_ids(tokenizer, system, teacher(pair))

    rows, problems = [], []
    for pair in pairs:
        prompt = prompt_ids(tokenizer, system, pair.question)
        answer = answer_ids(tokenizer, system, pair, prompt)
        if not answer:
            problems.append(f"{pair.id}: the answer {pair.answer!r} has no token")
        if unknown is not None and unknown in answer:
            problems.append(
                f"{pair.id}: the tokenizer does not know {answer.count(unknown)} token(s) of the answer: "
                f"{pair.answer!r:.200}"
            )
        elif special & set(answer):
            names = tokenizer.convert_ids_to_tokens(sorted(special & set(answer)))
            problems.append(f"{pair.id}: the answer holds the special token(s) {names}: {pair.answer!r:.200}")
        if "<think>" in pair.answer:
            problems.append(f"{pair.id}: the answer holds a think block: {pair.answer!r:.200}")
        row = Encoded(pair.id, prompt, [*answer, end], teacher_ids(pair))
        over = overlong(row, max_length, rollout_max_new_tokens)
        if over and too_long == "cut":
            row = cut_to_fit(row, pair, tokenizer, teacher_ids, max_length, rollout_max_new_tokens) or row
            over = overlong(row, max_length, rollout_max_new_tokens)
        problems += [f"{pair.id}: {what}" for what in over]
        rows.append(row)
    if problems:
        more = f"\n  ... and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise ConversationError(
            f"{len(problems)} problem(s) in the training rows; nothing is cut silently. A sequence may have "
            f"{max_length} tokens: raise train.max_length (up to what the model can read), lower "
            "distillation.rollout_max_new_tokens or ingest.max_characters, set train.too_long to cut (shortens "
            "answers, never questions), or remove the rows:\n  " + "\n  ".join(problems[:SHOWN_PROBLEMS]) + more
        )
    return rows


def overlong(row: Encoded, max_length: int, rollout_max_new_tokens: int) -> list[str]:
    """Which of the row's sequences exceed `max_length` tokens, with their lengths."""
    lengths = {
        "prompt + answer": len(row.prompt) + len(row.answer),
        "prompt + rollout": len(row.prompt) + rollout_max_new_tokens,
        "teacher's prompt + rollout": len(row.teacher_prompt or []) + rollout_max_new_tokens,
    }
    return [f"{what} has {length} tokens" for what, length in lengths.items() if length > max_length]


def cut_to_fit(
    row: Encoded,
    pair: TrainingPair,
    tokenizer: PreTrainedTokenizerBase,
    teacher_ids: Callable[[TrainingPair], list[int] | None],
    max_length: int,
    rollout_max_new_tokens: int,
) -> Encoded | None:
    """The row with the longest beginning of its answer that fits; None if not even its first token does.

    A cut answer has no end-of-turn token: the model must not learn to stop in the middle of a sentence. The teacher is
    shown just what is learned.
    """
    kept = min(len(row.answer) - 1, max_length - len(row.prompt))
    while kept > 0:
        teacher_prompt = teacher_ids(pair.model_copy(update={"answer": tokenizer.decode(row.answer[:kept])}))
        over = len(teacher_prompt or []) + rollout_max_new_tokens - max_length
        if over <= 0:
            return Encoded(row.id, row.prompt, row.answer[:kept], teacher_prompt, cut=len(row.answer) - kept)
        kept -= over
    return None


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, system: str | None, pair: TrainingPair, prompt: list[int]
) -> list[int]:
    """The answer's tokens as they follow the prompt's (some tokenizers write the start of a text differently)."""
    text = render(tokenizer, system, [{"role": "user", "content": pair.question}], add_generation_prompt=True)
    both = list(tokenizer(text + pair.answer, add_special_tokens=False)["input_ids"])
    if both[: len(prompt)] == prompt:
        return both[len(prompt) :]
    return list(tokenizer(pair.answer, add_special_tokens=False)["input_ids"])  # the border was merged into one token


def unknown_share(rows: Sequence[Encoded], unknown: int | None) -> float:
    """Share of unknown tokens among all prompt tokens (answers have none: `encode_pairs` refuses them)."""
    prompts = [ids for row in rows for ids in (row.prompt, row.teacher_prompt or [])]
    return sum(ids.count(unknown) for ids in prompts if unknown is not None) / sum(map(len, prompts))
