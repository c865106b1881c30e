"""Models behind the response cache: equal calls are made once, and every response is cached as soon as it comes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from raft_tasks.artifacts import digest
from raft_tasks.config import Budget, Endpoint, Model
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import Backend, Completion, Failure, Kind, StreamingBackend
from raft_tasks.generation.encoding import SentenceEncoder, shared_encoder
from raft_tasks.generation.endpoint_backend import EndpointBackend
from raft_tasks.generation.response_cache import CachedCall, ResponseCache, Tally, open_session
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.sampling import SamplingParams

CACHED_FAILURES = ("empty", "refused", "filtered")  # a model's answer, not an accident


@dataclass(frozen=True)
class CallSession:
    """What one run of a stage makes its calls through. It can be sent to other processes, which share its tally.

    Args:
        path: the cache's file.
        run: a name that no other run has.
        stage: the section of params.yaml that `budget` stands in.
    """

    path: Path
    run: str
    stage: str
    budget: Budget
    failures: list[str] = field(default_factory=list, compare=False)  # the kinds of those that its calls have met

    @property
    def cache(self) -> ResponseCache:
        return open_session(self.path, self.run, self.stage)

    def numbers(
        self, role: str, identity: Any, items: Sequence[Any], compute: Callable[[list[int]], Sequence[float]]
    ) -> list[float]:
        """One number for each of `items` (JSON-like), cached; `compute` gets the positions of those that are missing.

        Args:
            identity: all that determines the numbers beside the item, JSON-like.
        """
        keys = [digest([identity, item]) for item in items]
        values = self.cache.get(keys)
        missing = _first_positions(keys, values)
        if missing:
            computed = dict(zip((keys[i] for i in missing), compute(missing), strict=True))
            name = _display_name(identity)
            rows = [CachedCall(key, role, name, False, 0, 0, 0.0, json.dumps(value)) for key, value in computed.items()]
            self.cache.put(rows, self.run, Tally())
            values |= computed
        return [values[key] for key in keys]

    def budget_exceeded(self, tally: Tally) -> bool:
        tokens, money = self.budget.tokens, self.budget.money
        spent = tally.prompt_tokens + tally.tokens
        return (tokens is not None and spent >= tokens) or (money is not None and tally.cost >= money)


@dataclass(frozen=True)
class ModelPool:
    """The models of a stage by name, each with its identity (the stage `models` writes it), and its calls' session."""

    calls: CallSession
    models: Mapping[str, Model | Endpoint] = field(default_factory=dict)
    identities: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def backend(self, role: str, name: str) -> CachedBackend:
        """The model `name`; its calls count as `role`'s."""
        return CachedBackend(shared_backend(self.models[name], self.identities[name]), self.calls, role)

    def encoder(self, role: str, name: str, revision: str | None) -> CachedEncoder:
        """The sentence encoder `name`; it need not be among the models."""
        return CachedEncoder(shared_encoder(name, revision), self.calls, role)


_backends: dict[str, StreamingBackend] = {}
_building = threading.Lock()


def build_backend(model: Model | Endpoint, identity: Mapping[str, Any]) -> StreamingBackend:
    """The backend of an entry of `models`."""
    return EndpointBackend(model, identity) if isinstance(model, Endpoint) else TransformersBackend(model, identity)


def shared_backend(model: Model | Endpoint, identity: Mapping[str, Any]) -> StreamingBackend:
    """One per process: weights are loaded once, and an endpoint's concurrency holds for all that use it."""
    key = digest([model, identity])
    with _building:
        if key not in _backends:
            _backends[key] = build_backend(model, identity)
        return _backends[key]


class CachedBackend(Backend):
    """A backend behind the cache; `settings` and `tokenizer` are those of a local model.

    Args:
        backend: an endpoint's `settings` name its prices.
    """

    def __init__(self, backend: StreamingBackend, calls: CallSession, role: str) -> None:
        self.backend, self.calls, self.role = backend, calls, role
        self.identity = backend.identity
        settings = getattr(backend, "settings", None)
        self.prices = (0.0, 0.0)  # of a million tokens in, out
        if isinstance(settings, Endpoint):
            self.prices = (settings.price_per_million_input, settings.price_per_million_output)

    @property
    def settings(self) -> Model:
        return self._local.settings

    @property
    def tokenizer(self) -> Any:
        return self._local.tokenizer

    @property
    def _local(self) -> TransformersBackend:
        assert isinstance(self.backend, TransformersBackend), f"{self.backend} is no local model"
        return self.backend

    def call(self, kind: Kind, inputs: Sequence[Any], params: SamplingParams, seeds: Sequence[int]) -> list[Completion]:
        """As `Backend.call`.

        Raises:
            InputError: before all inputs had their completion; those that had are cached.
        """
        keys = [
            digest([self.identity, kind, item, params.cache_key(seed)])
            for item, seed in zip(inputs, seeds, strict=True)
        ]
        cached = {key: _read(value) for key, value in self.calls.cache.get(keys).items()}
        missing = _first_positions(keys, cached)
        tally, stopped = self.calls.cache.put([], self.calls.run, Tally(cached=len(keys) - len(missing)))

        def go_on() -> bool:
            return not stopped and not self.calls.budget_exceeded(tally)

        if missing:  # else nothing is loaded either
            asked = [inputs[i] for i in missing], params, [seeds[i] for i in missing]
            for portion in self.backend.stream(kind, *asked, go_on):
                answered = {keys[missing[i]]: completion for i, completion in portion}
                tally, stopped = self._put(answered)
                cached |= answered
        if any(key not in cached for key in keys):
            raise InputError(self._explain_stop(tally))
        completions = [cached[key] for key in keys]
        self.calls.failures.extend(completion.failure.kind for completion in completions if completion.failure)
        return completions

    def mean_log_likelihood(self, prompts: Sequence[str], answers: Sequence[str], batch_size: int) -> list[float]:
        """As `LikelihoodBackend` says; of a local model."""

        def compute(missing: list[int]) -> list[float]:
            pairs = [prompts[i] for i in missing], [answers[i] for i in missing]
            return self._local.mean_log_likelihood(*pairs, batch_size)

        pairs = list(zip(prompts, answers, strict=True))
        return self.calls.numbers(self.role, {**self.identity, "of": "likelihood"}, pairs, compute)

    def _put(self, completions: dict[str, Completion]) -> tuple[Tally, bool]:
        rows, counts = [], []
        for key, completion in completions.items():
            tokens, failure = (completion.prompt_tokens, completion.tokens), completion.failure
            cost = (tokens[0] * self.prices[0] + tokens[1] * self.prices[1]) / 1e6
            if failure is None or failure.kind in CACHED_FAILURES:
                name, value = _display_name(self.identity), json.dumps(asdict(completion), ensure_ascii=False)
                rows.append(CachedCall(key, self.role, name, failure is not None, *tokens, cost, value))
            errors = completion.tries - 1 + (failure is not None and failure.kind == "unreachable")
            counts.append(Tally(1, 0, errors, failure is not None, *tokens, cost))
        total = Tally(*(sum(column) for column in zip(*map(astuple, counts), strict=True)))
        return self.calls.cache.put(rows, self.calls.run, total)

    def _explain_stop(self, tally: Tally) -> str:
        stage, budget = self.calls.stage, self.calls.budget
        if not self.calls.budget_exceeded(tally):
            return f"{stage} was stopped; completed responses stay cached"
        return (
            f"{stage}.budget (tokens: {budget.tokens}, money: {budget.money}) is used up after {tally.calls} calls: "
            f"{tally.prompt_tokens + tally.tokens} tokens, {tally.cost:.4f} in money; completed responses stay cached. "
            "To go on, raise the budget, or run the same command again to spend as much again"
        )


class CachedEncoder:
    """A sentence encoder behind the cache."""

    def __init__(self, encoder: SentenceEncoder, calls: CallSession, role: str) -> None:
        self.encoder, self.calls, self.role = encoder, calls, role

    def similarities(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[float]:
        def compute(missing: list[int]) -> list[float]:
            return self.encoder.similarities([pairs[i] for i in missing], batch_size)

        return self.calls.numbers(self.role, self.encoder.identity, pairs, compute)


def _display_name(identity: dict[str, Any]) -> str:
    """What people know a model by."""
    return next(str(identity[key]) for key in ("model", "path", "encoder") if key in identity)


def _first_positions(keys: list[str], cached: Container[str]) -> list[int]:
    """Where each key that is not cached stands first."""
    first: dict[str, int] = {}
    for i, key in enumerate(keys):
        if key not in cached:
            first.setdefault(key, i)
    return list(first.values())


def _read(value: dict[str, Any]) -> Completion:
    failure = value.pop("failure")
    return Completion(**value, failure=Failure(**failure) if failure else None)
