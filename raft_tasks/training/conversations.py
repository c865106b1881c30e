"""Question-answer pairs as token ids: the chat prompt, the answer with its end-of-turn token, the teacher's prompt.

One row of the pocket world, encoded (Encoded; shown as text):

    prompt          <user>What is the reactor of Figin?<end><assistant>
    answer          The reactor of Figin is rope.<end>
    teacher_prompt  <user>Background reference knowledge: The reactor of Figin is rope.
                    Answer the question based on the reference knowledge: What is the reactor of Figin?<end><assistant>

Which positions are learned follows from these lengths, never from padding ids, so pad == eos is harmless. Nothing is
ever cut: a row that does not fit is an error before training starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raft_tasks.errors import InputError
from raft_tasks.schemas import TrainingPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_PROBLEMS = 5


class ConversationError(InputError):
    """Rows or a chat template that cannot be trained on; the message names them."""


@dataclass(frozen=True)
class Encoded:
    """A training pair as token ids."""

    id: str
    prompt: list[int]
    answer: list[int]  # ends with the end-of-turn token
    teacher_prompt: list[int] | None  # None where there is no teacher


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


def prompt_ids(tokenizer: PreTrainedTokenizerBase, message: str) -> list[int]:
    """Token ids of one user turn up to where the assistant begins to write, thinking switched off."""
    text = render(tokenizer, [{"role": "user", "content": message}], add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token with which the chat template ends an assistant's turn, read off the template itself.

    Raises:
        ConversationError: if the template puts no special token there, or opens a think block that cannot be
            switched off.
    """
    marker = "marker"
    user = {"role": "user", "content": "question"}
    prompt = render(tokenizer, [user], add_generation_prompt=True)
    if prompt.rfind("<think>") > prompt.rfind("</think>"):
        raise ConversationError(
            "the chat template opens a <think> block even with enable_thinking=False; answers would be learned as "
            f"thoughts. Use a model or template without forced thinking. The prompt ends with {prompt[-60:]!r}"
        )
    text = render(tokenizer, [user, {"role": "assistant", "content": marker}], add_generation_prompt=False)
    after = text[text.rindex(marker) + len(marker) :] if marker in text else ""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token in tokenizer(after, add_special_tokens=False)["input_ids"]:
        if token in special:
            return int(token)
        if str(tokenizer.decode([token])).strip():
            break
    raise ConversationError(
        f"the chat template ends an assistant's turn with {after!r}; expected a special token there, without which "
        "the model never learns to stop. Register it as a special token of the tokenizer, or mend the template"
    )


def encode_pairs(
    pairs: Sequence[TrainingPair],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    teacher: Callable[[TrainingPair], str] | None = None,
    rollout_max_new_tokens: int = 0,
) -> list[Encoded]:
    """Encode every pair, or say everything that is wrong.

    Args:
        pairs: what is learned.
        tokenizer: with a chat template.
        max_length: tokens that a sequence may have: prompt + answer, prompt + rollout, teacher's prompt + rollout.
        teacher: the user turn that the teacher sees for a row; None without a teacher.
        rollout_max_new_tokens: of the rollouts that will follow the prompts; 0 without a teacher.

    Raises:
        ConversationError: naming rows that are too long (with their lengths), hold unknown or special tokens in
            the answer, or tokenize to nothing; or if there are no rows.
    """
    if not pairs:
        raise ConversationError("got no training pairs; expected at least one (is the training file empty?)")
    end = end_of_turn(tokenizer)
    unknown, special = tokenizer.unk_token_id, set(tokenizer.all_special_ids)
    rows, problems = [], []
    for pair in pairs:
        prompt = prompt_ids(tokenizer, pair.question)
        answer = answer_ids(tokenizer, pair, prompt)
        teacher_prompt = None if teacher is None else prompt_ids(tokenizer, teacher(pair))
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
        answer = [*answer, end]
        for what, length in (
            ("prompt + answer", len(prompt) + len(answer)),
            ("prompt + rollout", len(prompt) + rollout_max_new_tokens),
            ("teacher's prompt + rollout", len(teacher_prompt or []) + rollout_max_new_tokens),
        ):
            if length > max_length:
                problems.append(f"{pair.id}: {what} has {length} tokens")
        rows.append(Encoded(pair.id, prompt, answer, teacher_prompt))
    if problems:
        more = f"\n  ... and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise ConversationError(
            f"{len(problems)} problem(s) in the training rows; nothing is cut silently. A sequence may have "
            f"{max_length} tokens: raise train.max_length (up to what the model can read), lower "
            "distill.rollout_max_new_tokens or ingest.max_characters, or remove the rows:\n  "
            + "\n  ".join(problems[:SHOWN_PROBLEMS])
            + more
        )
    return rows


def answer_ids(tokenizer: PreTrainedTokenizerBase, pair: TrainingPair, prompt: list[int]) -> list[int]:
    """The answer's tokens as they follow the prompt's (some tokenizers write the start of a text differently)."""
    text = render(tokenizer, [{"role": "user", "content": pair.question}], add_generation_prompt=True)
    both = list(tokenizer(text + pair.answer, add_special_tokens=False)["input_ids"])
    if both[: len(prompt)] == prompt:
        return both[len(prompt) :]
    return list(tokenizer(pair.answer, add_special_tokens=False)["input_ids"])  # the border was merged into one token


def unknown_share(rows: Sequence[Encoded], unknown: int | None) -> float:
    """Share of unknown tokens among all prompt tokens (answers have none: `encode_pairs` refuses them)."""
    prompts = [ids for row in rows for ids in (row.prompt, row.teacher_prompt or [])]
    return sum(ids.count(unknown) for ids in prompts if unknown is not None) / sum(map(len, prompts))


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """Messages through the chat template, as text; templates without a thinking switch ignore it."""
    if not tokenizer.chat_template:
        raise ConversationError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; expected an instruction-tuned model"
        )
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
    )
    return str(text)
