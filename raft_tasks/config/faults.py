"""What is wrong with params.yaml, in the user's terms: the key, what is expected, what stands there, what to do."""

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

from raft_tasks.config.base import Section, walk
from raft_tasks.config.models import MAY_BE_SECRET

RENAMED = {  # keys of 0.1 -> their names since
    "resources.rows": "run.rows",
    "methods.*.answers": "methods.*.target (raw is now reference, rewritten is rewrite)",
    "methods.*.cross_entropy": "methods.*.token_weighting (plain is now none), or sft: false (was none)",
    "methods.*.teacher": "methods.*.distillation.teacher (none: without distillation)",
    "methods.*.balance": "methods.*.distillation.kl_weight",
    "methods.*.distill": "methods.*.distillation (its lambda_max is now kl_weight_max, its sampler_tolerance "
    "sampling_logprob_tolerance)",
    "methods.*.distillation.lambda_max": "methods.*.distillation.kl_weight_max",
    "methods.*.distillation.sampler_tolerance": "methods.*.distillation.sampling_logprob_tolerance",
    "methods.*.adapter": "methods.*.lora",
    "methods.*.after": "methods.*.merge",
    "train.explosion": "train.loss_spike",
    "domains.*.chat.turns": "domains.*.chat.conversation (one is now single, every is all)",
    "anchors.*.turns": "anchors.*.prompt_source (invented is now generated)",
}


def explain(root: type[Section], error: ValidationError) -> list[str]:
    """One line per wrong key of `root`'s document."""
    lines: dict[str, str] = {}
    for problem in error.errors():
        parts, owners = walk(root, problem["loc"])
        if problem["type"] in ("extra_forbidden", "missing", "invalid_key"):
            parts, owners = walk(root, problem["loc"][:-1])
            parts = [*parts, problem["loc"][-1]]
        where = ".".join(map(str, parts)) or "(top level)"
        text = _unknown(where, parts, owners) if problem["type"] == "extra_forbidden" else _message(problem, parts)
        if where in lines and text not in lines[where]:  # the options of a union
            head, _, got = text.partition(", got ")
            lines[where] = lines[where].replace(", got ", f"; or {head}, got ", 1) if got else f"{lines[where]}; {text}"
        else:
            lines[where] = f"  {where}: {text}"
    return list(lines.values())


def _message(problem: Any, parts: list[str | int]) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{text}, since DVC unrolls the graph over it" if parts[0] == "run" and len(parts) == 2 else text
    if isinstance(problem["input"], dict):
        return text
    return text if MAY_BE_SECRET.intersection(parts) else f"{text}, got {problem['input']!r:.80}"


def _unknown(where: str, parts: list[str | int], owners: list[Any]) -> str:
    """An unknown key: the new name of an old one, else the likeliest; never its value where keys may be secret."""
    for old, new in RENAMED.items():
        if fnmatchcase(where, old) and where.count(".") == old.count("."):
            name = str(parts[1]) if "*" in old else ""
            return f"renamed, now {new.replace('*', name)}"
    if parts[-1] == "extends":
        return "names no other entry of its section, or leads back to itself"
    names = sorted({name for owner in owners if hasattr(owner, "model_fields") for name in owner.model_fields})
    close = get_close_matches(str(parts[-1]), names, n=1)
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key, expected one of {', '.join(names)}"
