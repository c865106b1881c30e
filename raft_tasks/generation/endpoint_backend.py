"""Text from an OpenAI-compatible server: calls in flight, failed ones again, each prompt with an answer or a reason.

The server sees one request per prompt (POST <base_url>/chat/completions) with the prompt as the only user message, or
(POST <base_url>/completions) as raw text to go on with.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from raft_tasks.chat import as_turns
from raft_tasks.config import Endpoint
from raft_tasks.control_tokens import CONTROL, break_up
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import (
    Completion,
    Failure,
    GoOn,
    Kind,
    Portion,
    StreamingBackend,
    always,
    replace_surrogates,
)
from raft_tasks.proxies import is_loopback, proxy_note, reach_directly
from raft_tasks.sampling import SamplingParams, is_finished
from raft_tasks.thoughts import strip_thoughts

if TYPE_CHECKING:
    import openai

CACHE_VERSION = 2  # of how requests are written and answers read: raise it where the same call gives another completion
CONNECT_SECONDS = 10.0
BACKOFF_SECONDS = 0.5  # the first wait is up to this; the bound doubles with each further one
BACKOFF_MOST_SECONDS = 60.0
RETRY_AFTER_MOST_SECONDS = 300.0  # a server that asks for more is not waited for
OVERLOADED = (429, 503)
TRANSIENT = (408, 409, 425, 429)  # and all from 500


class _Transient(Exception):
    """A try that may succeed when repeated."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class AdaptiveLimiter:
    """How many calls may be in flight: `most`, halved when the server is overloaded, regained one by one (AIMD)."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self._in_flight = 0
        self._lowered = 0.0  # when
        self._changed = threading.Condition()

    def __enter__(self) -> AdaptiveLimiter:
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight < int(self.limit))
            self._in_flight += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def overloaded(self, began: float) -> None:
        """A call that `began` then (time.monotonic) was refused; calls of one burst halve the limit once."""
        with self._changed:
            if began > self._lowered:
                self.limit = max(1.0, self.limit / 2)
                self._lowered = time.monotonic()

    def served(self) -> None:
        with self._changed:
            self.limit = min(float(self.most), self.limit + 1 / self.limit)


class EndpointBackend(StreamingBackend):
    """A `config.Endpoint`; threads may share one, and share its `concurrency`.

    The key is read from its environment variable for each call and is kept nowhere.
    """

    def __init__(self, model: Endpoint, identity: Mapping[str, Any]) -> None:
        self.settings = model
        self.identity = {**identity, "version": CACHE_VERSION}
        self.limiter = AdaptiveLimiter(model.concurrency)
        self._pool = ThreadPoolExecutor(model.concurrency, thread_name_prefix="endpoint")

    def stream(
        self, kind: Kind, inputs: Sequence[Any], params: SamplingParams, seeds: Sequence[int], go_on: GoOn = always
    ) -> Iterator[Portion]:
        """As `StreamingBackend.stream`, in the order in which the answers come.

        `chat` asks POST /chat/completions; `text` goes on with each input as it stands (POST /completions).

        Raises:
            InputError: the address, the key or the model's name is wrong, or the quota is used up.
        """
        stopped = threading.Event()

        def call(item: str, seed: int) -> Completion | None:
            if stopped.is_set() or not go_on():
                return None
            try:
                return self._complete(self._body(kind, item, params, seed))
            except BaseException:
                stopped.set()
                raise

        futures: dict[Future[Completion | None], int] = {
            self._pool.submit(call, item, seed): i for i, (item, seed) in enumerate(zip(inputs, seeds, strict=True))
        }
        error: BaseException | None = None
        try:
            for future in as_completed(futures):
                failed = future.exception()
                completion = None if failed else future.result()
                error = error or failed
                if completion:
                    yield [(futures[future], completion)]
        finally:
            stopped.set()
            for future in futures:
                future.cancel()
        if error:  # what was in flight beside it has been handed over
            raise error

    def _body(self, kind: Kind, item: Any, params: SamplingParams, seed: int) -> dict[str, Any]:
        """The request for one input."""
        fields: dict[str, Any] = {"model": self.settings.model}
        if kind == "chat":
            turns = as_turns(item)
            messages = [{**turn, "content": break_up(CONTROL, turn["content"])} for turn in turns]  # data stay text
            fields |= {"messages": messages, self.settings.length_field: params.max_tokens}
        elif kind == "text":
            fields |= {"prompt": item, "max_tokens": params.max_tokens}
        else:
            raise ValueError(f"an endpoint takes no {kind}")
        fields |= {name: getattr(params, name) for name in self.settings.sampling_fields}
        if self.settings.seeds:
            fields["seed"] = seed & 0x7FFFFFFF  # some servers take 32 bits
        return fields

    def _complete(self, body: dict[str, Any]) -> Completion:
        """One prompt's completion, after as many tries as it takes and `max_retries` allows."""
        stop, transient = stop_after_attempt(self.settings.max_retries + 1), retry_if_exception_type(_Transient)
        tries = 0
        try:
            for attempt in Retrying(stop=stop, wait=_wait, retry=transient, reraise=True):
                with attempt:
                    tries += 1
                    return _completion(self._answer(body), tries)
            raise AssertionError("tenacity returned without a result")
        except _Transient as error:
            failure = Failure("unreachable", f"{error} ({tries} tries)")
        except _Rejected as error:
            failure = Failure("rejected", str(error))
        return Completion("", finished=False, tokens=0, tries=tries, failure=failure)

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The server's JSON answer to one request."""
        import openai

        chat, client = "messages" in body, self._client
        completions: Any = (client.chat.completions if chat else client.completions).with_raw_response
        keyless = None if self.settings.api_key_env else {"Authorization": openai.Omit()}
        with self.limiter:
            began = time.monotonic()
            try:
                response = completions.create(**body, extra_body=self.settings.options, extra_headers=keyless)
            except openai.APITimeoutError as error:
                raise _Transient(f"no answer within {self.settings.timeout_s:g} s") from error
            except openai.APIConnectionError as error:
                reason = self._without_key(error.__cause__ or error)
                raise _Transient(f"no connection{proxy_note(self.settings.base_url)}: {reason}") from error
            except openai.APIStatusError as error:
                if error.status_code in OVERLOADED:
                    self.limiter.overloaded(began)
                raise self._problem(error, chat) from None  # its request holds the key
        self.limiter.served()
        try:
            answer = json.loads(response.content)
        except ValueError as error:
            raise _Transient(f"an answer that is not JSON: {response.text[:80]!r}") from error
        if not isinstance(answer, dict):
            raise _Transient(f"an answer that is no JSON object: {response.text[:80]!r}")
        return answer

    def _problem(self, error: openai.APIStatusError, chat: bool) -> Exception:
        """What an HTTP error means: try again, give the prompt up, or stop."""
        body = error.body if isinstance(error.body, dict) else {}
        status, reason = error.status_code, self._without_key(body.get("message") or error.response.text)[:300]
        proxy = proxy_note(self.settings.base_url)
        where = f"endpoint {self.settings.base_url}{proxy}, model {self.settings.model!r}"
        if status in (401, 403):
            name = self.settings.api_key_env
            given = f"the key in ${name}" if name else "no key (api_key_env: null)"
            return InputError(f"{where}: refused {given} with HTTP {status}: {reason}")
        if status == 404:
            raw = "" if chat else ", and that the server has /completions: a chat API cannot generate a user's turn"
            return InputError(f"{where}: HTTP 404: {reason}; check base_url (it usually ends in /v1) and model{raw}")
        if status == 402 or "insufficient_quota" in (error.code or "", reason):
            return InputError(f"{where}: the account's quota is used up (HTTP {status}): {reason}")
        if status in TRANSIENT or status >= 500:
            return _Transient(f"HTTP {status}{proxy}: {reason}", _retry_after(error.response.headers))
        refused = [name for name in self.settings.sampling_fields if name in reason]
        hint = f"; if the model refuses {refused}, take it out of the endpoint's sampling_fields" if refused else ""
        if chat and re.search(rf"\b{self.settings.length_field}\b", reason):
            other = {"max_tokens": "max_completion_tokens"}.get(self.settings.length_field, "max_tokens")
            hint += f"; if it refuses {self.settings.length_field}, set the endpoint's length_field to {other}"
        if self.settings.seeds and re.search(r"\bseed\b", reason):
            hint += "; if it refuses seeds, set the endpoint's seeds to false"
        return _Rejected(f"HTTP {status}: {reason}{hint}")

    @cached_property
    def _client(self) -> openai.OpenAI:
        import openai

        seconds = self.settings.timeout_s
        if is_loopback(self.settings.base_url):
            reach_directly(urlsplit(self.settings.base_url).hostname or "")
        return openai.OpenAI(
            base_url=self.settings.base_url,
            api_key=self._key,
            max_retries=0,  # tenacity's part
            timeout=openai.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)),
        )

    def _key(self) -> str:
        name = self.settings.api_key_env
        if name is None:
            return "none"  # not sent
        key = os.environ.get(name)
        if not key:
            raise InputError(
                f"endpoint {self.settings.base_url}: the environment variable {name} is not set or empty; "
                "put the key there, or set api_key_env to null for a server without keys"
            )
        return key

    def _without_key(self, message: object) -> str:
        key, text = os.environ.get(self.settings.api_key_env or ""), replace_surrogates(str(message))
        return text.replace(key, "***") if key else text


class _Rejected(Exception):
    """A request that the server will never serve."""


_backoff = wait_random_exponential(multiplier=BACKOFF_SECONDS, max=BACKOFF_MOST_SECONDS)  # full jitter


def _wait(state: RetryCallState) -> float:
    """Seconds before the next try: the backoff's draw, or what the server asked for, if that is more."""
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), error.retry_after if isinstance(error, _Transient) else 0.0)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait; 0 if it does not."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        else:
            seconds = float(headers.get("retry-after", 0))
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(headers["retry-after"]) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_MOST_SECONDS)


def _completion(answer: dict[str, Any], tries: int) -> Completion:
    """The completion in a server's answer.

    Raises:
        _Transient: the answer does not have the API's shape.
    """
    try:
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        ended, raw = is_finished(choice.get("finish_reason")), "text" in choice
        message = {"content": choice["text"]} if raw else choice["message"]
        text, refusal = message.get("content") or "", message.get("refusal")
        if isinstance(text, list):  # parts, thoughts among them (Mistral)
            text = "".join(part["text"] for part in text if part["type"] == "text")
        prompt_tokens, tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        if not isinstance(text, str):
            raise TypeError(f"content is a {type(text).__name__}")
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise _Transient(f"an answer without choices[0].message.content: {json.dumps(answer)[:80]}") from error
    turn = replace_surrogates(text)
    text, thinking = strip_thoughts(turn)  # of a server that does not take them out itself
    failure = None
    if choice.get("finish_reason") == "content_filter":
        failure = Failure("filtered", "the provider's content filter stopped the answer")
    elif refusal:
        failure = Failure("refused", replace_surrogates(str(refusal))[:300])
    elif not text.strip() and not raw:  # a text may well end where it stands
        failure = Failure("empty", "an empty answer" if ended else "cut before its answer began")
    if failure:
        return Completion("", False, tokens, prompt_tokens, tries, failure)
    calls = message.get("tool_calls") or message.get("function_call")  # of a tool: the text is what leads to it
    whole = ended and not thinking and not calls and not CONTROL.search(text)
    return Completion(text, whole, tokens, prompt_tokens, tries, raw="" if text == turn else turn)
