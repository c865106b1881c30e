"""Does a model's folder, by itself, show the prompts that the model was trained with, and end its answers as trained?

Transformers alone renders the folder's chat template, without options, as a server does. The measure is what training
renders with the base's template. Token ids are compared, and the end-of-turn token is looked for in the generation
config, by which servers stop: benchmarks stop there whatever the folder says.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from raft_tasks.chat import ChatError, Messages, end_of_turn, render
from raft_tasks.config import Model
from raft_tasks.gguf import model_folder
from raft_tasks.model_loading import load_tokenizer
from raft_tasks.schemas import thinking_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION = {"role": "user", "content": "What is the dose?"}
CONVERSATIONS: dict[str, Messages] = {
    "one turn": [QUESTION],
    "system turn": [{"role": "system", "content": "Reply in one word."}, QUESTION],
    "several turns": [
        QUESTION,
        {"role": "assistant", "content": "It is 5 mg."},
        {"role": "user", "content": "How often?\n"},
    ],
}

END = "end of turn"


def compare_prompts(model: Model, base: Model) -> dict[str, str | None]:
    """{conversation, or END: None where the folder is as training was, else the first difference}.

    Where `base` is trained in both modes, each conversation is asked for in either; else without any option.

    Args:
        base: what `model` was trained from, with the system prompt of its training.

    Raises:
        InputError: one of the two tokenizers cannot be loaded.
    """
    served, trained = load_tokenizer(model), load_tokenizer(base)
    differences: dict[str, str | None] = {}
    for name, messages in CONVERSATIONS.items():
        for thinking in {"off": [False], "on": [True], "both": [False, True]}[base.thinking]:
            options: dict[str, Any] = {"enable_thinking": thinking} if base.thinking == "both" else {}
            label = thinking_name(name) if base.thinking == "both" and thinking else name
            expected = _training_ids(trained, base.system, messages, thinking)
            differences[label] = _first_difference(served, trained, messages, expected, options)
    return differences | {END: _other_end(model, trained)}


def _other_end(model: Model, trained: PreTrainedTokenizerBase) -> str | None:
    """None where servers of the model's folder stop at the end of turn that was trained."""
    from transformers import GenerationConfig

    end = end_of_turn(trained)
    wanted = f"expected {end} ({trained.decode([end])!r}), which ends a turn in training"
    try:
        config = GenerationConfig.from_pretrained(str(model_folder(model.path)), revision=model.revision or "main")
    except OSError:
        return f"there is no generation_config.json with eos_token_id; {wanted}"
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return None if end in ends else f"generation_config.json stops at eos_token_id {config.eos_token_id}; {wanted}"


def _training_ids(
    trained: PreTrainedTokenizerBase, system: str | None, messages: Messages, thinking: bool
) -> list[int] | None:
    """None where training's template refuses the messages: so must the folder's."""
    try:
        text = render(trained, system, messages, add_generation_prompt=True, thinking=thinking)
    except ChatError:
        return None
    return list(trained(text, add_special_tokens=False)["input_ids"])


def served_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages, **options: Any) -> list[int]:
    """The prompt that a server of the tokenizer's folder makes: by its own template, with a request's options alone.

    Raises:
        TemplateError, TypeError, ValueError: the template refuses the messages.
    """
    turns = [dict(turn) for turn in messages]
    encoded: Any = tokenizer.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=True, **options
    )
    return list(encoded["input_ids"])


def _first_difference(
    served: PreTrainedTokenizerBase,
    trained: PreTrainedTokenizerBase,
    messages: Messages,
    expected: list[int] | None,
    options: dict[str, Any],
) -> str | None:
    from jinja2 import TemplateError

    try:
        shown_ids = served_ids(served, messages, **options)
    except (TemplateError, TypeError, ValueError) as error:
        return None if expected is None else f"the folder's template refuses it: {error}"
    if expected is None:
        return "training's template refuses it, the folder's does not"
    for position, (got, wanted) in enumerate(zip_longest(shown_ids, expected)):
        if got != wanted:
            shown = [repr(tokenizer.decode([id])) if id is not None else "the end"
                     for tokenizer, id in ((served, got), (trained, wanted))]  # fmt: skip
            return f"token {position} is {shown[0]}, in training {shown[1]}"
    return None
