"""How data say that a row, or a message of a conversation, is not to be learned, or is no whole answer.

    find_mark({"trainOnTurn": False})        -> "trainOnTurn is False"
    find_mark({"stop_reason": "max_tokens"}) -> "stop_reason is 'max_tokens'"

Keys are compared without case and without what stands between words.
"""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any

from raft_tasks.sampling import is_finished

# OpenAI, Mistral, OpenChat: weight 0; axolotl: train(ing) false; ms-swift, XTuner: loss false, loss_scale 0; NeMo,
# verl: loss_mask 0; torchtune: masked true; exports: ignore, mask, skip, exclude, deleted true.
_LEARNED = """
    weight lossweight lossscale lossmask steplossmask trainmask assistantmask assistantmasks train training trainable
    dotrain trainonturn trainonmessage loss learn learnable supervised outputwithloss
"""
_MASKED = """
    masked mask ismasked maskloss ignore ignored ignoreloss noloss notrain skip skiploss exclude excluded
    excludefromloss deleted
"""
LEARNED_KEYS, MASKED_KEYS = frozenset(_LEARNED.split()), frozenset(_MASKED.split())
MARK_LIKE = re.compile("loss|mask|train|learn|supervis|ignore|exclude")  # a message's key that may be such a mark
# Of two that a server gives, the first says why it stopped (vLLM's stop_reason is then a token).
ENDING_KEYS = ("finishreason", "finishreasons", "finishdetails", "donereason", "stopreason", "stoptype")
CUT_KEYS = frozenset({"truncated", "istruncated", "incomplete", "interrupted", "stoppedlimit"})  # true
WHOLE_KEYS = frozenset({"endturn", "finished", "isfinished", "iscomplete"})  # false
UNFINISHED = frozenset({"incomplete", "inprogress", "cancelled", "failed"})  # of OpenAI's `status`
MARKS = LEARNED_KEYS | MASKED_KEYS | CUT_KEYS | WHOLE_KEYS | {*ENDING_KEYS, "label", "status", "incompletedetails"}
WORDS = dict.fromkeys(("true", "yes", "y", "t"), True) | dict.fromkeys(("false", "no", "n", "f"), False)


@cache
def plain_key(name: str) -> str:
    """`train_on_turn`, `trainOnTurn` and `Train on turn` are one key."""
    return re.sub(r"[\W_]+", "", name).casefold()


def find_mark(record: Mapping[str, Any]) -> str | None:
    """The key and value by which a row says that it is not learned, or that its answer was cut; None if none does.

    Values other than yes and no are no marks; a list of them is one, since parts of a row cannot be left out.
    """
    for name, value in record.items():
        key = plain_key(name)
        if key == "label" and str(value).strip().casefold() == "false":  # KTO's bad answers; others are classes
            return f"{name} is {value!r}"
        if isinstance(value, str) and re.fullmatch(r"\s*\[[\w\s.,]*\]\s*", value):  # a list in CSV
            value = value.strip("[] \n").split(",")
        values = value if isinstance(value, list) else [value]
        if any(is_learned(key, item) is False for item in values):
            return f"{name} is {value!r}" if len(values) < 10 else f"{name} leaves parts out"
    return find_cut(record)


def is_learned(key: str, value: Any) -> bool | None:
    """What `value` says under a plain key; None if nothing."""
    if key not in LEARNED_KEYS | MASKED_KEYS:
        return None
    answer = truth(value)
    return None if answer is None else answer == (key in LEARNED_KEYS)


def truth(value: Any) -> bool | None:
    """Of yes and no in the ways of CSV, JSON and Parquet, a negative weight being no; None of anything else."""
    if isinstance(value, str):
        word = value.strip().casefold()
        try:
            return WORDS[word] if word in WORDS else truth(float(word))
        except ValueError:
            return None
    if not isinstance(value, int | float | Decimal) or value != value or not (value <= 0 or value == 1):
        return None
    return bool(value == 1)


def find_cut(record: Mapping[str, Any]) -> str | None:
    """The key and value by which a row or message says that its answer is not whole; None if none does."""
    by_key = {plain_key(name): (name, value) for name, value in record.items()}
    for key in ENDING_KEYS:
        name, value = by_key.get(key, ("", None))
        if value in (None, "", [], {}):
            continue
        reasons: Iterable[Any] = value if isinstance(value, list) else [value]
        whole = all(is_finished(reason.get("type") if isinstance(reason, dict) else reason) for reason in reasons)
        if not whole:
            return f"{name} is {value!r}"
        break
    for key, (name, value) in by_key.items():
        unfinished = key == "status" and isinstance(value, str) and plain_key(value) in UNFINISHED
        cut = (key in CUT_KEYS and truth(value)) or (key in WHOLE_KEYS and truth(value) is False)
        if unfinished or cut or (key == "incompletedetails" and value not in (None, "", {})):
            return f"{name} is {value!r}"
    return None
