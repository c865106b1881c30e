"""Rollouts by vLLM, in this process on the same GPU or by a server.

Written against vLLM 0.11's documented interface and tested against stand-ins only: it has never run against a real
vLLM. The trainer's probe tells whether engine and trainer agree about the weights.

Before every sampling the student's weights, or its adapter where it has one, are sent to the engine. Each row has its
own seed. vLLM must report log-probabilities after the temperature (`logprobs_mode`) and must not mix in the sampling
defaults of the model's folder (`generation_config`): the in-process engine is started so, a server has to be:

    VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve FOLDER/model \
        --logprobs-mode processed_logprobs --generation-config vllm [--enable-lora --max-lora-rank 64]
"""

import importlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import httpx
from torch import Tensor

from raft_tasks.config import VllmServer
from raft_tasks.errors import InputError
from raft_tasks.model_files import save_network
from raft_tasks.training.adapters import STUDENT
from raft_tasks.training.completion_forward import network_of
from raft_tasks.training.rollouts import Rollout, RolloutSampling

SERVER_SECONDS = 600.0  # how long one answer of the server may take


@dataclass(frozen=True)
class CurrentStudent:
    """The weights that the engine is given before each sampling: the student's, or just its adapter."""

    student: Any  # a transformers model, or a peft model where an adapter alone is trained
    adapted: bool

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under the name that the model's own checkpoint has."""
        return ((name, parameter.detach()) for name, parameter in self.student.named_parameters())

    def save(self, folder: Path) -> None:
        """Write the adapter (not the teacher's, where it has one), or the whole model."""
        if self.adapted:
            self.student.save_pretrained(folder, selected_adapters=[STUDENT])
        else:
            save_network(self.student, folder)

    @property
    def rank(self) -> int:
        """The adapter's, rounded up to one that vLLM makes room for."""
        return max(8, 1 << (self.student.peft_config[STUDENT].r - 1).bit_length())


def request_settings(sampling: RolloutSampling, seed: int) -> dict[str, Any]:
    """vLLM's SamplingParams, by whatever way they get there."""
    return {
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": sorted(sampling.stop_ids),
        "seed": seed,
        "logprobs": 0,  # of the sampled token alone
    }


class VllmEngineSampler:
    """vLLM inside the training's process, on the same GPU.

    Args:
        current: its `name_or_path` is the base, which the engine starts with.
        sampling: stop tokens, temperature, length.
        max_length: tokens of the longest sequence.
        gpu_memory: share of the GPU's memory for the engine's weights and cache.
        folder: where an adapter is written for the engine.

    Raises:
        InputError: vLLM is not installed.
    """

    def __init__(
        self, current: CurrentStudent, sampling: RolloutSampling, max_length: int, gpu_memory: float, folder: Path
    ) -> None:
        self.vllm = import_vllm()
        self.current, self.sampling, self.folder, self.syncs = current, sampling, folder, 0
        self.llm = self.vllm.LLM(
            model=str(network_of(current.student).name_or_path),
            gpu_memory_utilization=gpu_memory,
            max_model_len=max_length,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            **({"enable_lora": True, "max_lora_rank": current.rank} if current.adapted else {}),
        )

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        adapter = self.synchronise()
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            sampling_params=[self.vllm.SamplingParams(**request_settings(self.sampling, seed)) for seed in seeds],
            lora_request=adapter,
            use_tqdm=False,
        )
        rollouts = []
        for output in outputs:
            tokens = list(output.outputs[0].token_ids)
            log_probs = [top[token].logprob for token, top in zip(tokens, output.outputs[0].logprobs, strict=True)]
            rollouts.append(self.sampling.rollout(tokens, log_probs))
        return rollouts

    def synchronise(self) -> Any:
        """Send the student as it is now; returns the engine's handle of the adapter, if there is one."""
        self.syncs += 1
        if self.current.adapted:
            adapter = self.folder / f"adapter-{self.syncs}"
            self.current.save(adapter)
            rmtree(self.folder / f"adapter-{self.syncs - 1}", ignore_errors=True)
            # the engine keeps what it once read under a number
            return self.vllm.lora.request.LoRARequest(f"student-{self.syncs}", self.syncs, str(adapter))
        self.llm.apply_model(lambda network: network.load_weights(self.current.weights()))
        self.llm.reset_prefix_cache()  # what is cached was computed by the weights before
        return None


def import_vllm() -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else the weights would have to cross a process border
    try:
        vllm = importlib.import_module("vllm")
        importlib.import_module("vllm.lora.request")
    except ImportError as error:
        raise InputError(
            "sampler vllm: the package vllm is not installed. Expected: pip install 'raft-refinery[vllm]' on a "
            "machine with a GPU; or set distillation.sampler to {kind: generate, batch_size: ...}"
        ) from error
    return vllm


class VllmServerSampler:
    """vLLM as a server on the same file system, started as in the module's docstring.

    Weights are sent through `settings.folder`. Without an adapter it must hold the model that the server was started
    with, as folder/model: it is overwritten, and the server is told to read it again. Each process of the training has
    an adapter of its own under its own name.

    Raises:
        InputError: if the server does not answer, or not as expected.
    """

    def __init__(self, settings: VllmServer, current: CurrentStudent, sampling: RolloutSampling, process: int) -> None:
        self.url, self.folder, self.batch_size = settings.url.rstrip("/"), Path(settings.folder), settings.batch_size
        self.current, self.sampling, self.process, self.syncs = current, sampling, process, 0
        self.client = httpx.Client(base_url=self.url, timeout=SERVER_SECONDS)
        self.served = str(self.request("GET", "/v1/models").json()["data"][0]["id"])

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        name = self.synchronise()
        with ThreadPoolExecutor(self.batch_size) as pool:
            return list(pool.map(lambda prompt, seed: self.complete(name, prompt, seed), prompts, seeds))

    def complete(self, name: str, prompt: list[int], seed: int) -> Rollout:
        body = {"model": name, "prompt": prompt, "return_token_ids": True, **request_settings(self.sampling, seed)}
        choice = self.request("POST", "/v1/completions", body).json()["choices"][0]
        if choice.get("token_ids") is None or choice.get("logprobs") is None:
            raise InputError(
                f"{self.url}/v1/completions gave no token ids or log-probabilities, got the keys {sorted(choice)}; "
                "expected a vLLM of 0.11 or newer"
            )
        return self.sampling.rollout(choice["token_ids"], choice["logprobs"]["token_logprobs"])

    def synchronise(self) -> str:
        """Send the student as it is now; returns the model's name for requests."""
        self.syncs += 1
        if not self.current.adapted:
            if self.process:
                raise InputError("several processes cannot send their weights to one server; train an adapter")
            self.current.save(self.folder / "model")
            self.request("POST", "/collective_rpc", {"method": "reload_weights"})
            self.request("POST", "/reset_prefix_cache")
            return self.served
        name, before = (f"student-{self.process}-{number}" for number in (self.syncs, self.syncs - 1))
        self.current.save(self.folder / name)
        path = str((self.folder / name).resolve())
        self.request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        if self.syncs > 1:  # the server keeps what it once read under a name
            self.request("POST", "/v1/unload_lora_adapter", {"lora_name": before})
            rmtree(self.folder / before)
        return name

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = self.client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise InputError(
                f"the vLLM server at {self.url} does not answer {method} {path}: {error!r}. Expected one that runs as "
                "docs/guides/training.md says; distillation.sampler.url names it"
            ) from error
        if response.status_code != 200:
            raise InputError(
                f"the vLLM server at {self.url} refused {method} {path}: {response.status_code} {response.text[:300]}\n"
                "Expected one that was started as docs/guides/training.md says (development endpoints, LoRA updates)"
            )
        return response
