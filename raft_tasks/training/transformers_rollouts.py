"""Rollouts by transformers: batches, decoded token by token (`generate`), or its continuous batching.

With `generate` a row's rollout depends on its own seed alone and not on the rows that share its batch: a resumed
training, other micro-batches or more processes draw the same. (Up to floating point: padding changes the last digits of
the logits, which moves a draw that falls within about 1e-6 of the boundary between two tokens.)
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from raft_tasks.decoding import decode
from raft_tasks.sampling import SeededDraw, longest_first, uniform_draws
from raft_tasks.training.rollouts import Rollout, RolloutSampling

PAGE_TOKENS = 32  # of continuous batching's cache: what the end of a row can waste


class GenerateSampler:
    """Sampling in left-padded batches of prompts of like length, from the full distribution.

    The model is sampled as it is at the time of the call, in evaluation mode, within `autocast`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: RolloutSampling,
        batch_size: int,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.model, self.sampling, self.batch_size, self.autocast = model, sampling, batch_size, autocast

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        rollouts: dict[int, Rollout] = {}
        with evaluation_mode(self.model), torch.no_grad(), self.autocast():
            for batch in longest_first(list(map(len, prompts)), self.batch_size):
                sampled = self.sample([prompts[i] for i in batch], [seeds[i] for i in batch])
                rollouts.update(zip(batch, sampled, strict=True))
        return [rollouts[i] for i in range(len(prompts))]

    def sample(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        length = self.sampling.max_new_tokens
        draw = SeededDraw(
            uniform_draws(seeds, length).to(self.model.device), self.sampling.temperature, 1.0, torch.float32
        )
        completions = decode(self.model, prompts, draw, self.sampling.stop_ids, length)
        log_probs = draw.log_probs.tolist()
        return [
            self.sampling.rollout(tokens, row[: len(tokens)])
            for tokens, row in zip(completions, log_probs, strict=True)
        ]


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, and none of the settings (a repetition penalty, top-k) that a model's folder brings along:
    they would be mixed in and sample off-policy. Both are put back at the end."""
    generation_config, model.generation_config = model.generation_config, GenerationConfig()
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        model.generation_config = generation_config


class ContinuousBatchingSampler:
    """Sampling with transformers' continuous batching: a row that ends makes room for the next at once.

    It pays where lengths differ much and rows are many. transformers draws all rows from one generator: equal calls
    give equal rollouts, but a row's rollout depends on the others of its call, so another number of processes or
    another `rollout_steps` draws differently (from the same distribution).

    `batch_size` is the number of rows in flight. Weights are used in their own dtype: its threads see no autocast.
    """

    def __init__(self, model: PreTrainedModel, sampling: RolloutSampling, batch_size: int) -> None:
        self.model, self.sampling, self.batch_size = model, sampling, batch_size
        self.config = GenerationConfig(
            do_sample=True,
            temperature=sampling.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(sampling.stop_ids),
            pad_token_id=min(sampling.stop_ids),
        )

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        call_seed = int.from_bytes(hashlib.sha256(str(seeds).encode()).digest()[:4], "big")
        longest = max(map(len, prompts))
        pages = math.ceil((longest + self.sampling.max_new_tokens) / PAGE_TOKENS)
        settings = ContinuousBatchingConfig(  # the sizes that it would choose itself take most of the free memory
            seed=call_seed,
            return_logprobs=True,
            page_size=PAGE_TOKENS,
            num_blocks=self.batch_size * pages + 1,
            max_batch_tokens=self.batch_size * longest,
            max_requests_per_batch=self.batch_size,
            use_async_batching=False,
        )
        device = self.model.device
        with evaluation_mode(self.model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(call_seed)
            outputs = self.model.generate_batch(  # type: ignore[operator]  # it is a method
                prompts, generation_config=self.config, continuous_batching_config=settings, warmup=False
            )
        failed = [output.error for output in outputs.values() if output.error is not None]
        if failed or len(outputs) != len(prompts):
            raise RuntimeError(f"continuous batching gave {len(outputs)} of {len(prompts)} rollouts; errors: {failed}")
        return [self.sampling.rollout(output.generated_tokens, output.logprobs) for output in outputs.values()]
