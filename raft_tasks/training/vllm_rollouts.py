"""Rollouts by vLLM, in this process on the same GPU or by a server.

Written against vLLM 0.11's documented interface (LLM, SamplingParams, LoRARequest; the server's endpoints) and tested
against stand-ins for both: it has never run against a real vLLM. The trainer's probe says whether
engine and trainer agree about the weights.

Before every sampling the student's weights, or its adapter where it has one, are handed over. Each row brings its own
seed. vLLM must report log-probabilities after the temperature (`logprobs_mode`) and must not mix in the sampling
defaults of the model's folder (`generation_config`): the in-process engine is started so, a server has to be:

    VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve FOLDER/model \
        --logprobs-mode processed_logprobs --generation-config vllm [--enable-lora --max-lora-rank 64]
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from torch import Tensor

from raft_tasks.errors import InputError
from raft_tasks.training.adapters import STUDENT
from raft_tasks.training.rollouts import Rollout, cut

SERVER_SECONDS = 600.0  # how long one answer of the server may take


class VllmError(InputError):
    """vLLM is not there, or a server does not answer as one that was started as the module says."""


@dataclass(frozen=True)
class Handover:
    """What the engine is given before each sampling: the student's weights, or just its adapter."""

    student: Any  # a transformers model, or a peft model where an adapter alone is trained
    adapted: bool

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under the name that the model's own checkpoint has."""
        return ((name, parameter.detach()) for name, parameter in self.student.named_parameters())

    def save(self, folder: Path) -> None:
        """Write the adapter (not the teacher's, where it has one), or the whole model."""
        self.student.save_pretrained(folder, **({"selected_adapters": [STUDENT]} if self.adapted else {}))

    @property
    def rank(self) -> int:
        """The adapter's, rounded up to one that vLLM makes room for."""
        return max(8, 1 << (self.student.peft_config[STUDENT].r - 1).bit_length())


class VllmEngineSampler:
    """vLLM inside the training's process, on the same GPU.

    Args:
        model_path: folder or hub id of the base model, what the engine starts with.
        handover: gives the student's current weights.
        stop_ids: tokens that end a rollout.
        temperature: of the sampling.
        max_new_tokens: bound on the length.
        max_length: tokens of the longest sequence.
        gpu_memory: share of the GPU's memory for the engine's weights and cache.
        folder: where an adapter passes through.
        vllm: a module in vLLM's place.

    Raises:
        VllmError: if vLLM is not installed.
    """

    def __init__(
        self,
        model_path: str,
        handover: Handover,
        stop_ids: list[int],
        temperature: float,
        max_new_tokens: int,
        max_length: int,
        gpu_memory: float,
        folder: Path,
        vllm: Any = None,
    ) -> None:
        if vllm is None:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else the weights would have to cross a process border
            try:
                vllm = importlib.import_module("vllm")
                importlib.import_module("vllm.lora.request")
            except ImportError as error:
                raise VllmError(
                    "sampler vllm: the package vllm is not installed. Expected: pip install 'raft-refinery[vllm]' on a "
                    "machine with a GPU; or set distillation.sampler to {kind: generate, batch_size: ...}"
                ) from error
        self.vllm, self.handover, self.folder = vllm, handover, folder
        self.stop_ids, self.temperature, self.max_new_tokens = set(stop_ids), temperature, max_new_tokens
        self.fills = 0
        self.llm = vllm.LLM(
            model=model_path,
            gpu_memory_utilization=gpu_memory,
            max_model_len=max_length,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            **({"enable_lora": True, "max_lora_rank": handover.rank} if handover.adapted else {}),
        )

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        adapter = self.synchronise()
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            sampling_params=[self.vllm.SamplingParams(**self.settings(seed)) for seed in seeds],
            lora_request=adapter,
            use_tqdm=False,
        )
        rollouts = []
        for output in outputs:
            tokens = list(output.outputs[0].token_ids)
            chances = [of[token].logprob for token, of in zip(tokens, output.outputs[0].logprobs, strict=True)]
            rollouts.append(cut(tokens, chances, self.stop_ids))
        return rollouts

    def settings(self, seed: int) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "max_tokens": self.max_new_tokens,
            "stop_token_ids": sorted(self.stop_ids),
            "seed": seed,
            "logprobs": 0,  # of the drawn token alone
        }

    def synchronise(self) -> Any:
        """Hand the student over as it is now; returns the engine's handle of the adapter, if there is one."""
        self.fills += 1
        if self.handover.adapted:
            current = self.folder / f"adapter-{self.fills}"
            self.handover.save(current)
            rmtree(self.folder / f"adapter-{self.fills - 1}", ignore_errors=True)
            # the engine keeps what it once read under a number
            return self.vllm.lora.request.LoRARequest(f"student-{self.fills}", self.fills, str(current))
        self.llm.apply_model(lambda network: network.load_weights(self.handover.weights()))
        self.llm.reset_prefix_cache()  # what is cached was computed by the weights before
        return None


class VllmServerSampler:
    """vLLM as a server, started as this module's head says, that sees the same files.

    Args:
        url: of the server, without /v1.
        handover: gives the student's current weights.
        stop_ids: tokens that end a rollout.
        temperature: of the sampling.
        max_new_tokens: bound on the length.
        batch_size: requests in flight.
        process: number of this process among the training's; each has an adapter of its own under its own name.
        folder: where weights pass through. Without an adapter it must hold the model that the server was started with,
            as `folder`/model: it is overwritten, and the server is told to read it again.

    Raises:
        VllmError: if the server does not answer, or not as expected.
    """

    def __init__(
        self,
        url: str,
        handover: Handover,
        stop_ids: list[int],
        temperature: float,
        max_new_tokens: int,
        batch_size: int,
        process: int,
        folder: Path,
    ) -> None:
        import httpx

        self.url, self.handover, self.folder = url.rstrip("/"), handover, folder
        self.stop_ids, self.temperature, self.max_new_tokens = set(stop_ids), temperature, max_new_tokens
        self.batch_size, self.process, self.fills = batch_size, process, 0
        self.client = httpx.Client(base_url=self.url, timeout=SERVER_SECONDS)
        self.served = str(self.ask("GET", "/v1/models").json()["data"][0]["id"])

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        name = self.synchronise()
        with ThreadPoolExecutor(self.batch_size) as pool:
            return list(pool.map(lambda prompt, seed: self.complete(name, prompt, seed), prompts, seeds))

    def complete(self, name: str, prompt: list[int], seed: int) -> Rollout:
        request = {
            "model": name,
            "prompt": prompt,
            "temperature": self.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "max_tokens": self.max_new_tokens,
            "stop_token_ids": sorted(self.stop_ids),
            "seed": seed,
            "logprobs": 0,
            "return_token_ids": True,
        }
        choice = self.ask("POST", "/v1/completions", request).json()["choices"][0]
        if choice.get("token_ids") is None or choice.get("logprobs") is None:
            raise VllmError(
                f"{self.url}/v1/completions gave no token ids or log-probabilities, got the keys {sorted(choice)}; "
                "expected a vLLM of 0.11 or newer"
            )
        return cut(choice["token_ids"], choice["logprobs"]["token_logprobs"], self.stop_ids)

    def synchronise(self) -> str:
        """Hand the student over as it is now; returns the name to ask for."""
        self.fills += 1
        if not self.handover.adapted:
            if self.process:
                raise VllmError("several processes cannot hand their weights to one server; train an adapter")
            self.handover.save(self.folder / "model")
            self.ask("POST", "/collective_rpc", {"method": "reload_weights"})
            self.ask("POST", "/reset_prefix_cache")
            return self.served
        name, before = (f"student-{self.process}-{number}" for number in (self.fills, self.fills - 1))
        self.handover.save(self.folder / name)
        path = str((self.folder / name).resolve())
        self.ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        if self.fills > 1:  # the server keeps what it once read under a name
            self.ask("POST", "/v1/unload_lora_adapter", {"lora_name": before})
            rmtree(self.folder / before)
        return name

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        import httpx

        try:
            answer = self.client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise VllmError(
                f"the vLLM server at {self.url} does not answer {method} {path}: {error!r}. Expected one that runs as "
                "docs/guides/long-runs.md says; distillation.sampler.url names it"
            ) from error
        if answer.status_code != 200:
            raise VllmError(
                f"the vLLM server at {self.url} refused {method} {path}: {answer.status_code} {answer.text[:300]}\n"
                "Expected one that was started as docs/guides/long-runs.md says (development endpoints, LoRA updates)"
            )
        return answer
