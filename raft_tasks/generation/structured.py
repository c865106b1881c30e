"""Answers of a language model as checked values: JSON by a schema, with a bounded repair.

The model may think aloud, fence its JSON or write around it; what counts is the one JSON object that fits the schema.
A reply with none, or with several that differ (a judge that quotes what the candidate said about its own score), is
shown to the model once more together with the error, at most `repairs` times. What is still unusable then is returned
as `Unusable`, never guessed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from raft_tasks.artifacts import unique_keys
from raft_tasks.config import StructuredCall
from raft_tasks.generation.backend import Backend, replace_surrogates
from raft_tasks.generation.data_blocks import guarded
from raft_tasks.sampling import SamplingParams
from raft_tasks.seeds import derive_seed
from raft_tasks.thoughts import strip_thoughts

ValueT = TypeVar("ValueT", bound=BaseModel)

REPAIR = "repair.jinja"
SHOWN = 2000  # characters of a wrong reply in the repair's prompt
SAID = 200  # and in the reason that is kept
STARTS = 50  # braces that are tried as the beginning of an object: a reply of braces alone must not cost its square


@dataclass(frozen=True)
class Unusable:
    """What a model said instead of an answer by the schema, after the last repair."""

    error: str
    reply: str

    def __str__(self) -> str:
        return f"{self.error}; it said: {self.reply[:SAID]!r}" if self.reply else self.error


class NotTheSchema(ValueError):
    """A reply does not hold one JSON object by the schema; the message says what is wrong, for the model to read."""


def ask(
    backend: Backend,
    prompts: Sequence[str],
    schema: type[ValueT],
    settings: StructuredCall,
    *,
    batch_size: int,
    seeds: Sequence[int],
) -> list[ValueT | Unusable]:
    """One value of `schema` per prompt, in order; a prompt that gets none after `settings.repairs` is `Unusable`."""
    answers: list[ValueT | Unusable] = [Unusable("not asked", "")] * len(prompts)
    open_prompts = dict(enumerate(prompts))
    for attempt in range(settings.repairs + 1):
        if not open_prompts:
            break
        completions = backend.generate(
            list(open_prompts.values()),
            SamplingParams(settings.temperature, max_tokens=settings.max_new_tokens, batch_size=batch_size),
            [derive_seed(seeds[index], "attempt", attempt) for index in open_prompts],
        )
        retries = {}
        for index, completion in zip(open_prompts, completions, strict=True):
            if completion.failure:
                answers[index] = Unusable(f"no answer: {completion.failure}", "")
                continue  # the backend has tried what there was to try
            try:
                answers[index] = parse(completion.text, schema)
            except NotTheSchema as error:
                cut = "" if completion.finished else f"; it was cut at max_new_tokens = {settings.max_new_tokens}"
                answers[index] = Unusable(f"{error}{cut}", completion.text)
                wrong = guarded(REPAIR, seeds[index], reply=completion.text[:SHOWN], error=str(error))
                retries[index] = f"{prompts[index]}\n\n{wrong}"
        open_prompts = retries
    return answers


def parse(reply: str, schema: type[ValueT]) -> ValueT:
    """The one object of `schema` that the reply holds.

    Raises:
        NotTheSchema: there is none, or several that differ.
    """
    text, _ = strip_thoughts(reply)
    fitting: list[ValueT] = []
    error = "the reply holds no complete JSON object"
    for candidate in _objects(text):
        try:
            value = schema.model_validate(candidate)
        except ValidationError as problem:
            error = "; ".join(
                f"{'.'.join(map(str, part['loc'])) or 'the object'}: {part['msg']}" for part in problem.errors()
            )
            continue
        if value not in fitting:
            fitting.append(value)
    if len(fitting) > 1:
        raise NotTheSchema(f"the reply holds {len(fitting)} different JSON objects by the schema, one was asked for")
    if not fitting:
        raise NotTheSchema(error)
    return fitting[0]


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text that are not part of another one, in order; one with a key twice is none."""
    # Not strict: llama.cpp's grammar of a string lets a bare line break through.
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=_refuse_constant, strict=False)
    objects, start, starts = [], text.find("{"), 0
    while start >= 0 and starts < STARTS:
        starts += 1
        try:
            value, end = decoder.raw_decode(text, start)
            objects.append(json.loads(replace_surrogates(json.dumps(value, ensure_ascii=False))))
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
    return objects


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
