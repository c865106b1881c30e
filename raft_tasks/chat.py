"""How a chat model is spoken to: every prompt is rendered here, for rewriting, training, rollouts and benchmarks alike.

SmolLM3 with the system prompt "Be brief.", asked one question (shortened):

    <|im_start|>system ... Today Date: 26 July 2024 ... Reasoning Mode: /no_think ... Be brief. ... <|im_end|>
    <|im_start|>user
    What is 5 mg?<|im_end|>
    <|im_start|>assistant
    <think>

    </think>

Here thinking is off; with it, the model opens its thought itself. The date that some templates insert stands still, and
the system prompt is the one that params.yaml gives the model. `text`s that come out are tokenized without adding
special tokens: a template writes its own.

A trained model carries all of this in its own template (`served_template`), so that servers, which know no settings of
ours, show it the same prompts. One thing stays out: `defuse`, which cleans data before they reach a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_tasks.control_tokens import control_tokens, defuse
from raft_tasks.errors import InputError
from raft_tasks.schemas import Prompt, Turn
from raft_tasks.thoughts import TAGS, Thinking, opening, strip_thoughts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]

TODAY = date(2024, 7, 26)  # what Llama's template says where there is no clock; prompts must not depend on the day
NOW = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
THOUGHTS = "|".join(rf"{re.escape(start)}\s*{re.escape(end)}" for start, end in TAGS)
OPENING = frozenset(start.casefold() for start, _ in TAGS)
EMPTY_THOUGHT = re.compile(rf"(?:{THOUGHTS})\s*$")


PREAMBLE_END = "{# raft-refinery: the base model's template follows #}\n"  # trim_blocks drops that newline
PREAMBLE = """\
{{#- raft-refinery: prompts as this model was trained and measured with: {policy} -#}}
{switch}"""
SWITCHES: dict[Thinking, str] = {  # both: what a request asks for, else the template's own choice
    "off": "{%- set enable_thinking = false -%}\n",
    "on": "{%- set enable_thinking = true -%}\n",
    "both": "",
}
POLICIES: dict[Thinking, str] = {"off": "thinking off", "on": "thinking on", "both": "thinking as the request says"}
HEAD = re.compile(r"\{#- raft-refinery: [^\n]*\n(?:\{%- set enable_thinking = (?:true|false) -%\}\n)?")
SYSTEM_PREAMBLE = """\
{{%- set trained_system = {system} -%}}
{{%- if messages and messages[0]['role'] == 'system' -%}}
  {{%- if messages[0]['content'] is string -%}}
    {{%- set merged = trained_system + '\\n\\n' + messages[0]['content'] -%}}
  {{%- else -%}}
    {{%- set merged = [{{'type': 'text', 'text': trained_system + '\\n\\n'}}] + messages[0]['content'] -%}}
  {{%- endif -%}}
  {{%- set messages = [{{'role': 'system', 'content': merged}}] + messages[1:] -%}}
{{%- else -%}}
  {{%- set messages = [{{'role': 'system', 'content': trained_system}}] + messages -%}}
{{%- endif -%}}
"""


class ChatError(InputError):
    """A chat template, or a system prompt, that cannot be trained on."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    system: str | None,
    messages: Messages,
    add_generation_prompt: bool,
    continue_final_message: bool = False,
    thinking: bool = False,
) -> str:
    """Messages through the chat template, as text, thinking switched off or on.

    Args:
        system: the model's system prompt; stands before one that the messages bring along, and takes the place of one
            that `served_template` wrote. None: the template's own.
        add_generation_prompt: end where the assistant begins to write.
        continue_final_message: end within the last message, which the assistant goes on with.

    Raises:
        ChatError: the tokenizer has no chat template, or one that refuses these messages.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ChatError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; expected an instruction-tuned model"
        )
    turns = [{**turn, "content": defuse(tokenizer, turn["content"])} for turn in messages]
    if messages and messages[-1]["role"] == "assistant":
        turns[-1] = dict(messages[-1])  # what is learned is refused rather than changed
    template = HEAD.sub("", tokenizer.chat_template, count=1)  # of one made here the switch, not the system prompt
    if system is not None:
        template = template.partition(PREAMBLE_END)[2] or template
        extra = [turns.pop(0)["content"]] if turns and turns[0]["role"] == "system" else []
        turns.insert(0, {"role": "system", "content": "\n\n".join([system, *extra])})
    try:
        text = tokenizer.apply_chat_template(
            turns,
            chat_template=undated(template),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            enable_thinking=thinking,  # templates without such a switch pass it over
        )
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ChatError(
            f"the chat template of {tokenizer.name_or_path!r} refuses {[turn['role'] for turn in turns]}: {error}"
            + ("" if system is None else "; set the model's `system` to null if it takes no system prompt")
        ) from error
    return str(text)


@cache
def undated(template: str) -> str:
    """The chat template with the words of TODAY in place of its calls for today's.

    Raises:
        ChatError: a call whose format is not written out.
    """
    frozen = NOW.sub(lambda call: f"'{TODAY.strftime(call['format'])}'", template)
    if re.search(r"strftime_now\s*\(", frozen):
        raise ChatError(
            "the chat template asks for today's date in a format that is not a literal, so its prompts would change "
            "from day to day; expected strftime_now('...'). Write the format, or a date, into the template"
        )
    return frozen


def served_template(template: str, system: str | None, thinking: Thinking = "off") -> str:
    """A chat template that renders by itself, without any option, what `render` renders with `template` and `system`.

    Thinking is off, or on, whatever a client asks for; with `both` as it asks. The date stands still, and the system
    prompt comes first: without one that of a template that was made here before. It needs no more than what real
    templates use, so that other implementations of Jinja read it too.

    Raises:
        ChatError: as `undated`.
    """
    preamble, end, base = template.partition(PREAMBLE_END)
    trained_system = HEAD.sub("", preamble, count=1) if end else ""
    if system is not None:
        trained_system = SYSTEM_PREAMBLE.format(system=json.dumps(system, ensure_ascii=False))
    policy = f"{POLICIES[thinking]}, the date frozen" + (", the system prompt first" if trained_system else "")
    head = PREAMBLE.format(policy=policy, switch=SWITCHES[thinking])
    return head + trained_system + PREAMBLE_END + undated(base if end else template)


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase, system: str | None, folder: Path, thinking: Thinking = "off"
) -> None:
    """Write the tokenizer of a trained model, with the way of prompting in its chat template."""
    text = served_template(str(tokenizer.chat_template), system, thinking)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8", newline="\n")


def as_turns(prompt: Prompt) -> list[Turn]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, system: str | None, prompt: Prompt, thinking: bool = False
) -> list[int]:
    """Token ids of a user turn, or a conversation, up to where the assistant begins to write."""
    text = render(tokenizer, system, as_turns(prompt), add_generation_prompt=True, thinking=thinking)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def text_beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token with which a text begins: the tokenizer's beginning-of-text token, else the chat template's first one.

    Raises:
        ChatError: there is neither.
    """
    if tokenizer.bos_token_id is not None:
        return int(tokenizer.bos_token_id)
    first = prompt_ids(tokenizer, None, "question")[0]
    if first in control_tokens(tokenizer).values():
        return first
    raise ChatError(
        f"the tokenizer {tokenizer.name_or_path!r} has no beginning-of-text token, and its chat template begins with "
        f"{tokenizer.decode([first])!r}; expected a special token from which a text can be generated. Use an anchor "
        "set with another prompt_source"
    )


def opening_of_thoughts(tokenizer: PreTrainedTokenizerBase, system: str | None) -> str:
    """What the template writes of a thought before the model does, where thinking is on; mostly nothing."""
    question = [{"role": "user", "content": "question"}]
    return opening(render(tokenizer, system, question, add_generation_prompt=True, thinking=True))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token with which the chat template ends an assistant's turn, read off the template itself.

    Raises:
        ChatError: if the template puts no special token there.
    """
    marker = "marker"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}]
    text = render(tokenizer, None, turns, add_generation_prompt=False)
    after = text[text.rindex(marker) + len(marker) :] if marker in text else ""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token in tokenizer(after, add_special_tokens=False)["input_ids"]:
        if token in special:
            return int(token)
        if str(tokenizer.decode([token])).strip():
            break
    raise ChatError(
        f"the chat template ends an assistant's turn with {after!r}; expected a special token there, without which "
        "the model never learns to stop. Register it as a special token of the tokenizer, or mend the template"
    )


def stop_ids(tokenizer: PreTrainedTokenizerBase, configured: int | list[int] | None) -> list[int]:
    """Tokens at which an answer ends: the template's end of turn, the tokenizer's end of text and the model's own ends.

    Args:
        configured: the `eos_token_id` of the model's generation config.
    """
    ends = {end_of_turn(tokenizer), tokenizer.eos_token_id}
    ends |= set(configured) if isinstance(configured, list) else {configured}
    return sorted(token for token in ends if token is not None)


def rollout_ends(tokenizer: PreTrainedTokenizerBase, configured: int | list[int] | None) -> list[int]:
    """`stop_ids`, and tokens that open a thought: what a teacher that sees the reference would say there, it would say
    about the reference. Only that a thought is opened against the prompt is left to learn from.
    """
    opening = {id for text, id in control_tokens(tokenizer).items() if text.casefold() in OPENING}
    return sorted({*stop_ids(tokenizer, configured), *opening})


def check_chat(tokenizer: PreTrainedTokenizerBase, system: str | None, thinking: Thinking = "off") -> None:
    """Check the chat template before any work: `check_prompt`, `end_of_turn`, `check_generation_prompt`."""
    check_prompt(tokenizer, system, thinking)
    end_of_turn(tokenizer)
    check_generation_prompt(tokenizer, system)
    if thinking != "off":
        check_generation_prompt(tokenizer, system, thinking=True)


def check_prompt(tokenizer: PreTrainedTokenizerBase, system: str | None, thinking: Thinking = "off") -> None:
    """Check that prompts show the user's turn and the system prompt: without thinking, and with it where it is wanted.

    Raises:
        ChatError: the template opens a think block that cannot be switched off, has no switch although thinking is
            wanted, drops one of the two or refuses the system prompt, or the system prompt itself switches thinking on
            or holds a control token.
    """
    if system is not None and defuse(tokenizer, system) != system:
        raise ChatError(
            f"got the system prompt {system!r:.200}, which holds a control token of {tokenizer.name_or_path!r}; take "
            "it out of the model's `system` in params.yaml: the chat template writes its own"
        )
    if system is not None and (not system.strip() or "/think" in system or "/no_think" in system):
        raise ChatError(
            f"got the system prompt {system!r:.200}, expected text without /think or /no_think: models.base.thinking "
            "says whether the model thinks. Correct the model's `system` in params.yaml, or set it to null"
        )
    question = [{"role": "user", "content": "question"}]
    prompt = render(tokenizer, system, question, add_generation_prompt=True)
    if opening(prompt):
        raise ChatError(
            "the chat template opens a think block even with enable_thinking=False; answers would be learned as "
            f"thoughts. Use a model or template without forced thinking. The prompt ends with {prompt[-60:]!r}"
        )
    prompts = [prompt]
    if thinking != "off":
        prompts.append(render(tokenizer, system, question, add_generation_prompt=True, thinking=True))
        check_switch(tokenizer, thinking, *prompts)
    if any("question" not in text for text in prompts):
        raise ChatError(
            f"the chat template of {tokenizer.name_or_path!r} does not show the user's turn: {prompt[-60:]!r}"
        )
    if system is not None and any(system.strip() not in text for text in prompts):
        raise ChatError(
            f"the chat template of {tokenizer.name_or_path!r} does not show the system prompt {system!r:.200}; set the "
            "model's `system` in params.yaml to null, or use a template with a system turn"
        )


def check_switch(tokenizer: PreTrainedTokenizerBase, thinking: Thinking, without: str, thoughtful: str) -> None:
    """ChatError unless thinking can be switched on, and seen; the prompts are of one question, without and with it."""
    tags = sorted({tag for pair in TAGS for tag in pair}.intersection(tokenizer.all_special_tokens))
    if without == thoughtful:
        raise ChatError(
            f"thinking: got {thinking}, but the chat template of {tokenizer.name_or_path!r} has no switch: its prompts "
            "are the same with and without enable_thinking, as those of Qwen3 and SmolLM3 are not. Set the model's "
            "`thinking` in params.yaml to off, or use a model that can think"
        )
    if tags:
        raise ChatError(
            f"thinking: got {thinking}, but {tags} are special tokens of {tokenizer.name_or_path!r}, which decoding "
            "leaves out: thoughts would count as answers. Expected added tokens that are not special, as Qwen3 has "
            "them; register them so, or set the model's `thinking` in params.yaml to off"
        )


def check_generation_prompt(
    tokenizer: PreTrainedTokenizerBase, system: str | None, history: Sequence[Turn] = (), thinking: bool = False
) -> None:
    """The rendering of a prompt must be the beginning of the whole conversation's, with the answer right behind it.

    The prompt may end with an empty think block that the template leaves out of finished conversations. With thinking
    a think block may stand before the answer. All turns of a history must be in it, and its system turn may not switch
    thinking, as words in it do in SmolLM3's template.

    Raises:
        ChatError: it is not: answers would be learned at another place than the one where the model writes them.
    """
    answer = "marker"
    before = [Turn(role=turn["role"], content=f"turn{number}.") for number, turn in enumerate(history)]
    turns = [*before, Turn(role="user", content="question"), Turn(role="assistant", content=answer)]
    prompt = render(tokenizer, system, turns[:-1], add_generation_prompt=True, thinking=thinking)
    hidden = [turn["role"] for turn in before if turn["content"] not in prompt]
    if hidden:
        raise ChatError(
            f"the chat template of {tokenizer.name_or_path!r} does not show all turns of a conversation: {hidden} are "
            "missing; use a template that shows them, or domains.NAME.chat.conversation: first"
        )
    as_in_the_row = [turn if turn["role"] == "system" else plain for turn, plain in zip(history, before, strict=True)]
    if as_in_the_row != before:
        shown = render(tokenizer, system, [*as_in_the_row, turns[-2]], add_generation_prompt=True, thinking=thinking)
        if shown.rpartition("question")[2] != prompt.rpartition("question")[2]:
            raise ChatError(
                "the row's system turn switches thinking on or off (/think, /no_think, within a word too): take that "
                "out of it; models.base.thinking says whether the model thinks"
            )
    whole = render(tokenizer, system, turns, add_generation_prompt=False, thinking=thinking)
    begins = [prompt, EMPTY_THOUGHT.sub("", prompt)]
    if thinking:
        begins.append(prompt.removesuffix(opening(prompt)))
    rests = [whole[len(begin) :].lstrip() for begin in begins if whole.startswith(begin)]
    if not any((strip_thoughts(rest)[0] if thinking else rest).startswith(answer) for rest in rests):
        raise ChatError(
            "the chat template's prompt does not end where the assistant begins to write: expected the prompt "
            f"({prompt[-60:]!r}) and right behind it the answer, got the conversation {whole[-120:]!r}. Mend "
            "the template's add_generation_prompt, or use the model's own template"
        )
