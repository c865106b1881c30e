"""Trajectories z ~ p_student(. | x) of the current student (Eq. 6): one protocol, two samplers of transformers.

What a row draws depends on its own seed alone, `rollout_seed(run's seed, step, row's id)`, and not on the rows that
share its batch: a resumed training, other micro-batches or more processes draw the same. (Up to floating point: padding
changes the last digits of the logits, which moves a draw that falls within about 1e-6 of the boundary between two
tokens.) Continuous batching is the exception, see `ContinuousBatchingSampler`. vLLM: `vllm_rollouts.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from raft_tasks.config import Distillation
from raft_tasks.training.scoring import network_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAGE_TOKENS = 32  # of continuous batching's cache: what the end of a row can waste


@dataclass(frozen=True)
class Rollout:
    """One sampled answer. It always has at least one token, so every sample has a position to learn from."""

    tokens: list[int]  # the stop token included, if it was sampled
    truncated: bool  # the length bound came before a stop token
    log_probs: list[float]  # of each token as the sampler drew it, at the sampling temperature

    @property
    def empty(self) -> bool:
        """The student ended its turn at once; what remains is that decision."""
        return len(self.tokens) == 1 and not self.truncated


class Sampler(Protocol):
    """Anything that samples from the student as it is now; equal weights, prompts and seeds give equal rollouts."""

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        """One rollout per prompt, in the prompts' order; each prompt brings its own seed."""
        ...


def rollout_seed(seed: int, step: int, row: str) -> int:
    """The seed of one row's rollout. No generator state has to survive: a resumed step draws the same."""
    return int.from_bytes(hashlib.sha256(f"rollouts/{seed}/{step}/{row}".encode()).digest()[:8], "big") >> 1


def make_sampler(
    settings: Distillation,
    student: Any,
    stop_ids: list[int],
    precision: Callable[[], AbstractContextManager],
    max_length: int,
    process: int,
    folder: Path,
) -> Sampler:
    """The sampler that `distillation.sampler` names.

    Args:
        settings: of the method.
        student: the model that is trained, or the peft model around it; its `name_or_path` is the base.
        stop_ids: tokens that end a rollout.
        precision: makes the context of the student's own passes.
        max_length: tokens of the longest sequence.
        process: number of this process among the training's.
        folder: where weights pass through on their way to vLLM in this process.
    """
    kind, drawing = settings.sampler, (stop_ids, settings.rollout_temperature, settings.rollout_max_new_tokens)
    network = network_of(student)
    if kind.kind == "generate":
        return GenerateSampler(network, *drawing, kind.batch_size, precision)
    if kind.kind == "continuous_batching":
        return ContinuousBatchingSampler(network, *drawing, kind.batch_size)
    from raft_tasks.training.vllm_rollouts import Handover, VllmEngineSampler, VllmServerSampler

    handover = Handover(student, adapted=student is not network)
    if kind.kind == "vllm":
        return VllmEngineSampler(str(network.name_or_path), handover, *drawing, max_length, kind.gpu_memory, folder)
    return VllmServerSampler(kind.url, handover, *drawing, kind.batch_size, process, Path(kind.folder))


def cut(tokens: list[int], log_probs: list[float], stop_ids: set[int]) -> Rollout:
    """Everything up to and with the first stop token."""
    for length, token in enumerate(tokens, start=1):
        if token in stop_ids:
            return Rollout(tokens[:length], truncated=False, log_probs=log_probs[:length])
    return Rollout(tokens, truncated=True, log_probs=log_probs)


class GenerateSampler:
    """Sampling with transformers' `generate`: left-padded batches of prompts of like length, the full distribution.

    Args:
        model: the student, sampled as it is at the time of the call, in evaluation mode.
        stop_ids: tokens that end a rollout.
        temperature: of the sampling; 1 is the student's own distribution.
        max_new_tokens: bound on the length.
        batch_size: prompts that are sampled together at most.
        precision: makes the context to run in (autocast, like the student's own passes).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: list[int],
        temperature: float,
        max_new_tokens: int,
        batch_size: int,
        precision: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        from transformers import GenerationConfig

        self.model, self.precision = model, precision
        self.stop_ids, self.temperature, self.batch_size = set(stop_ids), temperature, batch_size
        self.config = GenerationConfig(
            do_sample=False,  # `_Draw` leaves one token to choose
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stop_ids),
            pad_token_id=min(stop_ids),  # what is behind the stop token is cut off by position, not by id
            use_cache=True,
        )

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        # the longest first: memory runs out at once or never
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        drawn: dict[int, Rollout] = {}
        with as_sampled(self.model), torch.no_grad(), self.precision():
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                rollouts = self.sample([prompts[i] for i in batch], [seeds[i] for i in batch])
                drawn.update(zip(batch, rollouts, strict=True))
        return [drawn[i] for i in range(len(prompts))]

    def sample(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        from transformers import LogitsProcessorList

        longest = max(map(len, prompts))
        device = self.model.device
        pad = self.config.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        draw = _Draw(uniforms(seeds, self.config.max_new_tokens).to(device), self.temperature)
        output: Tensor = self.model.generate(  # type: ignore[operator]  # it is a method
            ids, attention_mask=mask, generation_config=self.config, logits_processor=LogitsProcessorList([draw])
        )
        log_probs = torch.stack(draw.log_probs, dim=-1).tolist()
        tokens = output[:, longest:].tolist()
        return [cut(row, chances, self.stop_ids) for row, chances in zip(tokens, log_probs, strict=True)]


@contextmanager
def as_sampled(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, and none of the settings (a repetition penalty, top-k) that a model's folder brings along:
    they would be mixed in and sample off-policy. Both are put back at the end."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        model.generation_config = own


def uniforms(seeds: list[int], steps: int) -> Tensor:
    """Uniform draws in [0, 1) [B, steps]; row i depends on seeds[i] alone. On the CPU: the same for every device."""
    return torch.stack(
        [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    )


class _Draw:
    """A logits processor that decides the next token by inverse CDF, and leaves the greedy search just that one.

    One uniform number per row and step suffices, so a row's stream can be its own; `torch.multinomial` draws all rows
    from one generator. The sum runs in the vocabulary's order: sorted, a rounding error could swap two tokens.
    """

    def __init__(self, draws: Tensor, temperature: float) -> None:
        self.draws, self.temperature = draws, temperature
        self.log_probs: list[Tensor] = []  # [B] of each step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] -> 0 at the drawn token, -inf elsewhere [B, V]."""
        log_probs = (scores.float() / self.temperature).log_softmax(-1)
        cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
        whole = cumulative[:, -1:]
        draws = self.draws[:, len(self.log_probs), None] * whole
        draws = torch.minimum(draws, whole.nextafter(torch.zeros_like(whole)))  # rounding must not pass the last token
        tokens = torch.searchsorted(cumulative, draws, right=True)
        self.log_probs.append(log_probs.gather(-1, tokens).squeeze(-1))
        return torch.full_like(scores, float("-inf")).scatter(-1, tokens, 0.0)


class ContinuousBatchingSampler:
    """Sampling with transformers' continuous batching: a row that ends makes room for the next at once.

    It pays where lengths differ much and rows are many. transformers draws all rows from one generator: equal calls
    give equal rollouts, but a row's rollout depends on the others of its call, so another number of processes or
    another `rollout_steps` draws differently (from the same distribution).

    Args: as `GenerateSampler`; batch_size is the number of rows in flight. The student's weights are read in the dtype
        that they have: without autocast, which its threads would not see.
    """

    def __init__(
        self, model: PreTrainedModel, stop_ids: list[int], temperature: float, max_new_tokens: int, batch_size: int
    ) -> None:
        from transformers import GenerationConfig

        self.model, self.stop_ids, self.batch_size = model, set(stop_ids), batch_size
        self.config = GenerationConfig(
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stop_ids),
            pad_token_id=min(stop_ids),
        )

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        from transformers import ContinuousBatchingConfig

        of_call = int.from_bytes(hashlib.sha256(str(seeds).encode()).digest()[:4], "big")
        longest = max(map(len, prompts))
        pages = math.ceil((longest + self.config.max_new_tokens) / PAGE_TOKENS)
        settings = ContinuousBatchingConfig(  # the sizes that it would choose itself take most of the free memory
            seed=of_call,
            return_logprobs=True,
            page_size=PAGE_TOKENS,
            num_blocks=self.batch_size * pages + 1,
            max_batch_tokens=self.batch_size * longest,
            max_requests_per_batch=self.batch_size,
            use_async_batching=False,
        )
        device = self.model.device
        with as_sampled(self.model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(of_call)
            outputs = self.model.generate_batch(  # type: ignore[operator]  # it is a method
                prompts, generation_config=self.config, continuous_batching_config=settings, warmup=False
            )
        failed = [output.error for output in outputs.values() if output.error is not None]
        if failed or len(outputs) != len(prompts):
            raise RuntimeError(f"continuous batching gave {len(outputs)} of {len(prompts)} rollouts; errors: {failed}")
        return [cut(output.generated_tokens, output.logprobs, self.stop_ids) for output in outputs.values()]
