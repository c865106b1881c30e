"""The vLLM samplers against stand-ins: an engine and a server that really sample, from the weights they were given."""

import json
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import distillation, tiny_llama

from raft_tasks.config import VllmServer
from raft_tasks.errors import InputError
from raft_tasks.training.rollout_buffer import make_sampler
from raft_tasks.training.rollouts import RolloutSampling
from raft_tasks.training.transformers_rollouts import GenerateSampler
from raft_tasks.training.vllm_rollouts import CurrentStudent, VllmEngineSampler, VllmServerSampler

# peft 0.21 asks transformers for a name that it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
SEEDS = [1, 2, 3]
END = 2
SAMPLING = RolloutSampling([END], 1.0, 6)


def moved_student():
    """A student that training has moved away from the base (seed 0)."""
    return tiny_llama(40, seed=1)


def lora_student():
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return get_peft_model(
            tiny_llama(40), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        ).eval()


def with_adapter(folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(tiny_llama(40), folder).eval()


def sampled(model, prompts, seeds, settings):
    assert (settings["top_p"], settings["top_k"], settings["logprobs"]) == (1.0, -1, 0)
    sampling = RolloutSampling(settings["stop_token_ids"], settings["temperature"], settings["max_tokens"])
    return GenerateSampler(model, sampling, 64)(prompts, seeds)


# --- in this process ---


class FakeEngine:
    """What `vllm.LLM` offers, as far as the sampler uses it."""

    def __init__(self, **settings):
        self.settings, self.network, self.resets, self.adapters = settings, tiny_llama(40), 0, []
        self.network.load_weights = lambda weights: self.network.load_state_dict(dict(weights), strict=False)

    def apply_model(self, function):
        return [function(self.network)]

    def reset_prefix_cache(self):
        self.resets += 1

    def generate(self, prompts, sampling_params, lora_request, use_tqdm):
        network = self.network
        if lora_request is not None:
            self.adapters.append((lora_request.number, Path(lora_request.path).name))
            network = with_adapter(lora_request.path)
        rollouts = sampled(
            network, [p["prompt_token_ids"] for p in prompts], [s["seed"] for s in sampling_params], sampling_params[0]
        )
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        token_ids=r.tokens,
                        logprobs=[
                            {token: SimpleNamespace(logprob=chance)}
                            for token, chance in zip(r.tokens, r.log_probs, strict=True)
                        ],
                    )
                ]
            )
            for r in rollouts
        ]


FAKE_VLLM = SimpleNamespace(
    LLM=FakeEngine,
    SamplingParams=dict,
    lora=SimpleNamespace(
        request=SimpleNamespace(
            LoRARequest=lambda name, number, path: SimpleNamespace(name=name, number=number, path=path)
        )
    ),
)


@pytest.fixture
def engine_sampler(monkeypatch):
    monkeypatch.setattr("raft_tasks.training.vllm_rollouts.import_vllm", lambda: FAKE_VLLM)
    return lambda student, folder, adapted: VllmEngineSampler(
        CurrentStudent(student, adapted), SAMPLING, 64, 0.3, folder
    )


def test_the_engine_samples_from_the_students_current_weights(engine_sampler, tmp_path):
    student = moved_student()
    sampler = engine_sampler(student, tmp_path, adapted=False)
    assert sampler.llm.settings["logprobs_mode"] == "processed_logprobs"
    expected = GenerateSampler(student, SAMPLING, 64)
    for _ in range(2):
        assert sampler(PROMPTS, SEEDS) == expected(PROMPTS, SEEDS)
        with torch.no_grad():
            student.lm_head.weight += 0.3 * torch.randn_like(student.lm_head.weight)
    assert sampler.llm.resets == 2


def test_the_engine_gets_an_adapter_under_a_new_number_each_time(engine_sampler, tmp_path):
    student = lora_student()
    sampler = engine_sampler(student, tmp_path, adapted=True)
    for _ in range(2):
        assert sampler(PROMPTS, SEEDS) == GenerateSampler(student, SAMPLING, 64)(PROMPTS, SEEDS)
    assert sampler.llm.settings["max_lora_rank"] == 8
    assert sampler.llm.adapters == [(1, "adapter-1"), (2, "adapter-2")]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter-2"]


def test_without_vllm_the_error_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"pip install 'raft-refinery\[vllm\]'.*kind: generate"):
        VllmEngineSampler(CurrentStudent(None, False), SAMPLING, 64, 0.3, tmp_path)


# --- as a server ---


class FakeServer(BaseHTTPRequestHandler):
    """The endpoints of `vllm serve` that the sampler uses; the served state hangs on the server object."""

    def log_message(self, *args):
        pass

    def answer(self, body, code=200):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer({"data": [{"id": "the-model"}]})

    def do_POST(self):
        state = self.server.state
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        state.calls.append(self.path)
        if self.path in state.refused:
            self.answer({"error": "not found"}, 404)
        elif self.path == "/collective_rpc":
            assert body == {"method": "reload_weights"}
            state.models["the-model"].load_state_dict(
                load_file(state.folder / "model" / "model.safetensors"), strict=False
            )
            self.answer({})
        elif self.path == "/v1/load_lora_adapter":
            state.models[body["lora_name"]] = with_adapter(body["lora_path"])
            self.answer({})
        elif self.path == "/v1/unload_lora_adapter":
            del state.models[body["lora_name"]]
            self.answer({})
        elif self.path == "/v1/completions":
            assert body["return_token_ids"]
            with state.lock:
                [r] = sampled(state.models[body["model"]], [body["prompt"]], [body["seed"]], body)
            chances = {"token_logprobs": r.log_probs} if state.reports else None
            self.answer({"choices": [{"token_ids": r.tokens, "logprobs": chances}]})
        else:
            self.answer({})


@pytest.fixture
def server(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeServer)
    server.state = SimpleNamespace(
        folder=tmp_path, models={"the-model": tiny_llama(40)}, calls=[], refused=set(), reports=True,
        lock=threading.Lock(),
    )  # fmt: skip
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def server_sampler(server, student, adapted, process=0):
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    settings = VllmServer(kind="vllm_server", batch_size=2, url=url, folder=str(server.state.folder))
    return VllmServerSampler(settings, CurrentStudent(student, adapted), SAMPLING, process)


def test_the_server_reads_the_students_weights_again_before_each_sampling(server):
    student = moved_student()
    sampler = server_sampler(server, student, adapted=False)
    expected = GenerateSampler(student, SAMPLING, 64)
    for _ in range(2):
        got = sampler(PROMPTS, SEEDS)
        assert [r.tokens for r in got] == [r.tokens for r in expected(PROMPTS, SEEDS)]
        with torch.no_grad():
            student.lm_head.weight += 0.3 * torch.randn_like(student.lm_head.weight)
    assert server.state.calls[:2] == ["/collective_rpc", "/reset_prefix_cache"]
    assert server.state.calls.count("/collective_rpc") == 2


def test_the_server_gets_an_adapter_and_forgets_the_one_before(server):
    student = lora_student()
    sampler = server_sampler(server, student, adapted=True, process=3)
    expected = GenerateSampler(student, SAMPLING, 64)(PROMPTS, SEEDS)
    for _ in range(2):
        assert [r.tokens for r in sampler(PROMPTS, SEEDS)] == [r.tokens for r in expected]
    assert set(server.state.models) == {"the-model", "student-3-2"}
    assert [path.name for path in server.state.folder.iterdir()] == ["student-3-2"]


def test_a_method_names_the_server(server):
    """What the trainer makes of `distillation.sampler`, for a student with an adapter."""
    url = f"http://127.0.0.1:{server.server_address[1]}"
    named = {"kind": "vllm_server", "batch_size": 2, "url": url, "folder": str(server.state.folder)}
    student = lora_student()
    sampler = make_sampler(distillation(sampler=named), student, [END], nullcontext, 64, 0, Path("unused"))
    expected = GenerateSampler(student, SAMPLING, 64)(PROMPTS, SEEDS)
    assert [r.tokens for r in sampler(PROMPTS, SEEDS)] == [r.tokens for r in expected]
    assert server.state.calls[0] == "/v1/load_lora_adapter"


def test_servers_that_are_not_as_expected(server):
    server.state.refused = {"/collective_rpc"}
    with pytest.raises(InputError, match=r"refused POST /collective_rpc: 404.*\n.*development endpoints"):
        server_sampler(server, moved_student(), adapted=False)(PROMPTS, SEEDS)
    server.state.refused, server.state.reports = set(), False
    with pytest.raises(InputError, match="no token ids or log-probabilities"):
        server_sampler(server, moved_student(), adapted=False)(PROMPTS, SEEDS)
    with pytest.raises(InputError, match="several processes cannot send their weights"):
        server_sampler(server, moved_student(), adapted=False, process=1)(PROMPTS, SEEDS)


def test_a_server_that_is_not_there():
    nowhere = VllmServer(kind="vllm_server", batch_size=2, url="http://127.0.0.1:9", folder="unused")
    with pytest.raises(InputError, match=r"http://127.0.0.1:9 does not answer GET /v1/models"):
        VllmServerSampler(nowhere, CurrentStudent(None, False), SAMPLING, 0)
