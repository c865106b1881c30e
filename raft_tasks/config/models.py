"""The models that the roles of the other sections name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag

from raft_tasks.config.base import Count, Section, added_key, key
from raft_tasks.thoughts import Thinking

MAY_BE_SECRET = frozenset({"api_key_env", "base_url"})  # where people put a key by mistake: never shown


class Model(Section):
    """A local model: a folder or a pinned hub id."""

    path: str = key(..., "folder, or hub id (owner/name)")
    revision: str | None = key(None, "commit of 40 hexadecimal digits, required for a hub id; null for a folder")
    dtype: Literal["float32", "bfloat16"] = key("bfloat16", "number format of the weights")
    system: str | None = key(None, "system prompt of every conversation; null: the chat template's own")
    thinking: Thinking = added_key(
        "off", "of base: whether it is trained, measured and served thinking; both: measured in either mode", "off"
    )
    thought_tokens: PositiveInt = added_key(1024, "tokens of a thought, at most, beside those of its answer", 1024)

    def at(self, folder: str | Path) -> Model:
        """The model in another folder, such as the one that was trained from this one, with the same settings."""
        return self.model_copy(update={"path": str(folder), "revision": None})


class Endpoint(Section):
    """A model behind an OpenAI-compatible API."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^/@\s]+(/[^@\s]*)?$")] = key(
        ..., "address of the API, without credentials"
    )
    model: str = key(..., "the model's name at the server")
    seeds: bool = key(True, "send a seed with every request; false where the server refuses one")
    options: dict[str, Any] = key({}, "further fields of every request, such as reasoning_effort")
    sampling_fields: list[Literal["temperature", "top_p"]] = key(
        ["temperature", "top_p"], "sampling settings to send; leave out those that the model refuses"
    )
    length_field: Literal["max_tokens", "max_completion_tokens"] = key(
        "max_tokens", "the server's name for the length limit of an answer"
    )
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = key(
        None, "NAME of the environment variable that holds the key; null: none is sent"
    )
    concurrency: PositiveInt = key(16, "requests in flight at most; fewer after a 429")
    timeout_s: PositiveFloat = key(300.0, "seconds for a whole answer")
    max_retries: Count = key(5, "retries of a failed request")
    price_per_million_input: Annotated[float, Field(ge=0)] = key(0.0, "price of 10^6 input tokens, unit of `budget`")
    price_per_million_output: Annotated[float, Field(ge=0)] = key(0.0, "price of 10^6 output tokens, unit of `budget`")


def _kind_of_model(value: Any) -> str:
    return "endpoint" if isinstance(value, Endpoint) or (isinstance(value, dict) and "base_url" in value) else "local"


AnyModel = Annotated[
    Annotated[Model, Tag("local")] | Annotated[Endpoint, Tag("endpoint")], Discriminator(_kind_of_model)
]
