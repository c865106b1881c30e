import json
import logging
import threading
import time
from email.utils import formatdate

import pytest
from endpoint_server import running, stats

from raft_tasks.config import Endpoint
from raft_tasks.errors import InputError
from raft_tasks.generation import endpoint_backend
from raft_tasks.generation.backend import Completion, Failure
from raft_tasks.generation.endpoint_backend import AdaptiveLimiter, EndpointBackend
from raft_tasks.sampling import SamplingParams

KEY = "sk-planted-0123456789"
PARAMS = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=20, batch_size=4)


@pytest.fixture(scope="module")
def server():
    with running(latency=0.002) as base_url:
        yield base_url


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(endpoint_backend, "_backoff", lambda state: 0.01)


def endpoint(base_url, **changes):
    settings = {
        "base_url": base_url, "model": "m", "seeds": True, "options": {}, "length_field": "max_tokens",
        "api_key_env": None, "concurrency": 4, "timeout_s": 5.0, "max_retries": 3,
        "price_per_million_input": 0.0, "price_per_million_output": 0.0,
    }  # fmt: skip
    return EndpointBackend(Endpoint(**settings | changes), {"base_url": base_url, "model": "m"})


def ask(backend, *prompts, kind="chat"):
    texts = [prompt if isinstance(prompt, str) else json.dumps(prompt) for prompt in prompts]
    return backend.call(kind, texts, PARAMS, range(len(texts)))


def test_a_request_says_what_was_asked_and_an_answer_is_counted(server):
    backend = endpoint(server, options={"reasoning_effort": "low"}, length_field="max_completion_tokens")
    (answer,) = backend.generate(["{}"], PARAMS, [2**62 + 7])
    assert json.loads(answer.text) == {
        "model": "m", "messages": [{"role": "user", "content": "{}"}], "temperature": 0.7, "top_p": 0.9, "seed": 7,
        "max_completion_tokens": 20, "reasoning_effort": "low", "authorization": None,
    }  # fmt: skip
    assert (answer.finished, answer.prompt_tokens, answer.tokens, answer.tries) == (True, 10, 5, 1)
    (answer,) = ask(endpoint(server, seeds=False), {})
    assert "seed" not in json.loads(answer.text)


def test_raw_text_is_gone_on_with_and_may_end_where_it_stands(server):
    backend = endpoint(server, options={"skip_special_tokens": False}, length_field="max_completion_tokens")
    (answer,) = ask(backend, "{}", kind="text")
    assert json.loads(answer.text) == {
        "model": "m", "prompt": "{}", "temperature": 0.7, "top_p": 0.9, "seed": 0, "max_tokens": 20,
        "skip_special_tokens": False, "authorization": None,
    }  # fmt: skip
    ended, cut = ask(
        backend,
        {"choice": {"text": "", "finish_reason": "stop"}},
        {"choice": {"text": "What is", "finish_reason": "length"}},
        kind="text",
    )
    assert (ended.text, ended.finished, ended.failure) == ("", True, None)
    assert (cut.text, cut.finished) == ("What is", False)


def test_a_server_that_only_chats_is_told(server):
    with pytest.raises(
        InputError, match=r"HTTP 404.*that the server has /completions: a chat API cannot generate a user's"
    ):
        ask(endpoint(server), {"status": 404}, kind="text")
    with pytest.raises(InputError, match=r"and model$"):
        ask(endpoint(server), {"status": 404})


def test_answers_come_in_the_order_of_the_prompts(server):
    slow_first = [{"seconds": 0.2 - 0.05 * n, "choice": {"message": {"content": str(n)}}} for n in range(4)]
    assert [answer.text for answer in ask(endpoint(server), *slow_first)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("order", "tries"),
    [
        ({"status": 429, "times": 2}, 3),
        ({"status": 500, "times": 3}, 4),
        ({"status": 503, "times": 1}, 2),
        ({"status": 408, "times": 1}, 2),
    ],
)
def test_what_may_pass_is_tried_again(server, order, tries):
    (answer,) = ask(endpoint(server), order | {"n": tries})
    assert (answer.failure, answer.tries) == (None, tries)


@pytest.mark.parametrize(
    ("order", "kind", "reason"),
    [
        ({"status": 500}, "unreachable", "HTTP 500: as told (4 tries)"),
        ({"body": "<html>busy</html>"}, "unreachable", "an answer that is not JSON: '<html>busy</html>' (4 tries)"),
        ({"body": "[]"}, "unreachable", "an answer that is no JSON object: '[]' (4 tries)"),
        ({"body": '{"choices": []}'}, "unreachable", "an answer without choices[0].message.content"),
        ({"body": '{"choices": [{"message": {"content": [1]}}]}'}, "unreachable", "an answer without choices[0]"),
        ({"status": 400, "says": "too long"}, "rejected", "HTTP 400: too long"),
        ({"choice": {"message": {"content": " \n"}, "finish_reason": "stop"}}, "empty", "an empty answer"),
        ({"choice": {"message": {"content": None}, "finish_reason": "length"}}, "empty", "cut before its answer began"),
        ({"choice": {"message": {"content": "x"}, "finish_reason": "content_filter"}}, "filtered", "content filter"),
        ({"choice": {"message": {"content": None, "refusal": "I will not."}}}, "refused", "I will not."),
    ],
)
def test_a_prompt_without_an_answer_has_a_reason_and_the_others_go_on(server, order, kind, reason):
    failed, good = ask(endpoint(server), order, "good")
    assert failed.failure.kind == kind
    assert reason in failed.failure.reason
    assert (failed.text, failed.finished) == ("", False)
    assert good.failure is None


def test_a_timeout_is_tried_again_and_then_told(server):
    (answer,) = ask(endpoint(server, timeout_s=0.2, max_retries=1), {"seconds": 1.0})
    assert answer.failure == Failure("unreachable", "no answer within 0.2 s (2 tries)")


def test_nobody_there(server):
    (answer,) = ask(endpoint("http://127.0.0.1:9/v1", max_retries=1), "hello")
    assert answer.failure.kind == "unreachable"
    assert "no connection" in answer.failure.reason


def test_an_answer_that_was_cut_is_not_finished(server):
    (answer,) = ask(endpoint(server), {"choice": {"message": {"content": "It is"}, "finish_reason": "length"}})
    assert answer == Completion("It is", finished=False, tokens=5, prompt_tokens=10)


@pytest.mark.parametrize(
    ("reason", "finished"),
    [
        *((reason, True) for reason in ("stop", "STOP", "eos", "eos_token", "stop_sequence", "end_turn", "COMPLETE")),
        *((reason, False) for reason in ("length", "max_tokens", "MAX_TOKENS", "abort", "error", "tool_calls")),
        *((reason, False) for reason in ("content_filtered", "insufficient_system_resource", "a reason of next year")),
        *((reason, False) for reason in (None, "", "tool_use", {"why": "stop"})),
    ],
)  # fmt: skip
def test_just_listed_reasons_mean_that_the_turn_was_ended(server, reason, finished):
    (answer,) = ask(endpoint(server), {"choice": {"message": {"content": "It is"}, "finish_reason": reason}})
    assert (answer.text, answer.finished, answer.failure) == ("It is", finished, None)


@pytest.mark.parametrize("call", [{"tool_calls": [{"id": "c"}]}, {"function_call": {"name": "weather"}}])
def test_a_text_that_leads_to_a_call_of_a_tool_is_not_finished(server, call):
    message = {"content": "Let me look that up."} | call
    (answer,) = ask(endpoint(server), {"choice": {"message": message, "finish_reason": "stop"}})
    assert not answer.finished


def test_an_answer_that_spells_a_control_token_is_not_finished(server):
    choice = '{"message": {"content": "5 mg.\\u003c|im_end|>"}, "finish_reason": "stop"}'
    (answer,) = ask(endpoint(server), {"body": f'{{"choices": [{choice}]}}'})
    assert answer.text == "5 mg.<|im_end|>"
    assert not answer.finished


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_a_dead_proxy_does_not_matter_to_this_machine_and_is_named_for_others(server, monkeypatch, proxy):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (answer,) = ask(endpoint(server), {})
    assert answer.failure is None
    settings = endpoint(server).settings.model_copy(update={"base_url": "http://api.example.org/v1", "max_retries": 0})
    far = EndpointBackend(settings, {})
    (answer,) = ask(far, {})
    assert f"no connection through the proxy {proxy} of the environment" in answer.failure.reason


def test_half_a_character_is_replaced_and_two_halves_are_one(server):
    halves = '{"message": {"content": "\\ud83d! \\ud83d\\ude00"}, "finish_reason": "stop"}'
    refusal = '{"message": {"content": null, "refusal": "No \\ud83d"}}'
    whole, refused, failed = ask(
        endpoint(server, max_retries=0),
        {"body": f'{{"choices": [{halves}]}}'},
        {"body": f'{{"choices": [{refusal}]}}'},
        {"status": 400, "says": "bad \ud83d"},
    )
    assert whole.text == "\ufffd! \U0001f600"
    assert [row.failure.reason for row in (refused, failed)] == ["No \ufffd", "HTTP 400: bad \ufffd"]


def test_parts_of_an_answer_are_joined_without_thoughts(server):
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    message = {"content": [thought, {"type": "text", "text": "It is "}, {"type": "text", "text": "5 mg."}]}
    (answer,) = ask(endpoint(server), {"choice": {"message": message, "finish_reason": "stop"}})
    assert (answer.text, answer.finished) == ("It is 5 mg.", True)


def test_a_count_without_end_is_an_answer_without_shape(server):
    body = '{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": Infinity}}'
    (answer,) = ask(endpoint(server, max_retries=0), {"body": body})
    assert answer.failure.kind == "unreachable"


@pytest.mark.parametrize(
    ("says", "remedy"),
    [
        ("Use 'max_completion_tokens' instead of 'max_tokens'.", "set the endpoint's length_field to max_completion"),
        ("Unrecognized request argument: seed", "set the endpoint's seeds to false"),
    ],
)
def test_a_field_that_is_refused_has_its_setting(server, says, remedy):
    (answer,) = ask(endpoint(server), {"status": 400, "says": says})
    assert remedy in answer.failure.reason


def test_sampling_settings_that_a_model_refuses_are_not_sent(server):
    (answer,) = ask(endpoint(server, sampling_fields=["top_p"], seeds=False), {})
    assert {"temperature", "top_p", "seed"} & set(json.loads(answer.text)) == {"top_p"}
    (answer,) = ask(endpoint(server), {"status": 400, "says": "Unsupported value: 'temperature'"})
    assert "take it out of the endpoint's sampling_fields" in answer.failure.reason


def test_data_do_not_become_the_servers_tokens(server):
    (answer,) = endpoint(server).generate(['{"a": "<|im_end|> <b> [INST] x < y </s>"}'], PARAMS, [0])
    message = json.loads(json.loads(answer.text)["messages"][0]["content"])["a"]
    assert message == "< |im_end|> <b> [ INST] x < y < /s>"


@pytest.mark.parametrize("header", ["seconds", "date", "milliseconds"])
def test_a_server_that_asks_to_wait_is_waited_for(server, header):
    names = {"seconds": {"Retry-After": "1"}, "date": {"Retry-After": formatdate(time.time() + 2, usegmt=True)}}
    headers = names.get(header, {"retry-after-ms": "600"})
    began = time.monotonic()
    (answer,) = ask(endpoint(server), {"status": 429, "times": 1, "headers": headers, "of": header})
    assert answer.failure is None
    assert time.monotonic() - began > 0.55


@pytest.mark.parametrize(
    ("order", "parts"),
    [
        ({"status": 401, "says": f"bad key {KEY}"}, ["refused the key in $RAFT_TEST_KEY with HTTP 401", "***"]),
        ({"status": 403}, ["HTTP 403"]),
        ({"status": 404, "says": "no such model"}, ["no such model", "check base_url"]),
        ({"status": 429, "says": "insufficient_quota"}, ["quota is used up"]),
    ],
)
def test_what_concerns_every_prompt_stops(server, monkeypatch, order, parts):
    monkeypatch.setenv("RAFT_TEST_KEY", KEY)
    with pytest.raises(InputError) as error:
        ask(endpoint(server, api_key_env="RAFT_TEST_KEY"), order)
    assert [part for part in parts if part not in str(error.value)] == []
    assert KEY not in str(error.value)


def test_a_key_is_read_for_each_call_and_told_nowhere(server, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    backend = endpoint(server, api_key_env="RAFT_TEST_KEY")
    with pytest.raises(InputError, match="environment variable RAFT_TEST_KEY is not set"):
        ask(backend, {})
    monkeypatch.setenv("RAFT_TEST_KEY", KEY)
    (answer,) = ask(backend, {})
    assert json.loads(answer.text)["authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("RAFT_TEST_KEY", "sk-another")
    (answer,) = ask(backend, {"n": 2})
    assert json.loads(answer.text)["authorization"] == "Bearer sk-another"
    told = [caplog.text, json.dumps(backend.identity), repr(vars(backend)), repr(backend.settings)]
    assert [text for text in told if KEY in text or "sk-another" in text] == []


def test_calls_in_flight_end_and_are_handed_over_when_it_stops(server):
    done = []
    slow = json.dumps({"seconds": 0.3})
    stream = endpoint(server, concurrency=2).stream(
        "chat", [json.dumps({"status": 401, "says": "no"}), slow, slow], PARAMS, [0, 1, 2]
    )
    with pytest.raises(InputError):
        done.extend(stream)
    assert [[number for number, _ in portion] for portion in done] == [[1]]


def test_nothing_begins_once_it_shall_not_go_on(server):
    left = iter([True, True])
    stream = endpoint(server, concurrency=1).stream(
        "chat", ["a", "b", "c"], PARAMS, [0, 1, 2], lambda: next(left, False)
    )
    assert sorted(number for portion in stream for number, _ in portion) == [0, 1]


def test_no_more_calls_in_flight_than_allowed():
    with running(latency=0.05) as base_url:
        backend = endpoint(base_url, concurrency=3)
        chunks = [threading.Thread(target=ask, args=(backend, *(f"{n} {i}" for i in range(6)))) for n in range(3)]
        for chunk in chunks:
            chunk.start()
        for chunk in chunks:
            chunk.join()
        assert stats(base_url)["most_in_flight"] == 3
        assert stats(base_url)["served"] == 18


def test_the_limiter_halves_once_for_a_burst_and_recovers():
    limiter = AdaptiveLimiter(8)
    began = time.monotonic()
    for _ in range(3):
        limiter.overloaded(began)
    assert limiter.limit == 4
    limiter.overloaded(time.monotonic())
    assert limiter.limit == 2
    for _ in range(8):
        limiter.overloaded(time.monotonic())
    assert limiter.limit == 1
    for _ in range(200):
        limiter.served()
    assert limiter.limit == 8


def test_the_wait_is_jittered_within_a_growing_bound(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.undo()
    for number, most in ((1, 0.5), (2, 1.0), (4, 4.0), (30, 60.0)):
        state = SimpleNamespace(attempt_number=number, outcome=None)
        waits = [endpoint_backend._wait(state) for _ in range(300)]
        assert 0 <= min(waits) < 0.2 * most
        assert 0.8 * most < max(waits) <= most
