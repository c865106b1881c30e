"""The rollouts of the current optimiser step and of the `rollout_steps` - 1 after it, within the epoch."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from raft_tasks.config import Distillation
from raft_tasks.seeds import derive_seed
from raft_tasks.training.completion_forward import network_of
from raft_tasks.training.conversations import Encoded
from raft_tasks.training.distributed import gather_objects
from raft_tasks.training.rollouts import Rollout, RolloutSampling, Sampler
from raft_tasks.training.transformers_rollouts import ContinuousBatchingSampler, GenerateSampler
from raft_tasks.training.vllm_rollouts import CurrentStudent, VllmEngineSampler, VllmServerSampler


class RolloutBuffer:
    """Rollouts by optimiser step (0, 1, ...); each process samples its share.

    A row's seed names the step that it is for, however early it is sampled.
    """

    def __init__(self, sampler: Sampler, seed: int, process: int, processes: int) -> None:
        self.sampler, self.seed, self.process, self.processes = sampler, seed, process, processes
        self.by_step: dict[int, list[Rollout]] = {}

    def __contains__(self, step: int) -> bool:
        return step in self.by_step

    def take(self, step: int) -> list[Rollout]:
        return self.by_step.pop(step)

    def fill(self, first: int, steps: list[list[Encoded]]) -> None:
        """One rollout for every row of `steps`, the first of which has number `first`."""
        rows = [(first + number, row) for number, batch in enumerate(steps) for row in batch]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][1].prompt_ids))
        local = order[self.process :: self.processes]
        seeds = [derive_seed(f"rollouts/{self.seed}/{rows[i][0]}/{rows[i][1].id}") for i in local]
        sampled = self.sampler([rows[i][1].prompt_ids for i in local], seeds) if local else []
        rollouts = dict(gather_objects(list(zip(local, sampled, strict=True)), self.processes))
        self.by_step = {first + number: [] for number in range(len(steps))}
        for i, (step, _) in enumerate(rows):
            self.by_step[step].append(rollouts[i])

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {str(step): [vars(rollout) for rollout in rollouts] for step, rollouts in self.by_step.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.by_step = {int(step): [Rollout(**rollout) for rollout in rollouts] for step, rollouts in state.items()}


def make_sampler(
    settings: Distillation,
    student: Any,
    stop_ids: list[int],
    autocast: Callable[[], AbstractContextManager],
    max_length: int,
    process: int,
    folder: Path,
) -> Sampler:
    """The sampler that `distillation.sampler` names; sequences have at most `max_length` tokens.

    `student` is the model that is trained, or the peft model around it; its `name_or_path` is the base. `autocast`
    makes the context of its own passes; in `folder` weights are written for vLLM in this process.
    """
    kind, network = settings.sampler, network_of(student)
    sampling = RolloutSampling(stop_ids, settings.rollout_temperature, settings.rollout_max_new_tokens)
    if kind.kind == "generate":
        return GenerateSampler(network, sampling, kind.batch_size, autocast)
    if kind.kind == "continuous_batching":
        return ContinuousBatchingSampler(network, sampling, kind.batch_size)
    current = CurrentStudent(student, adapted=student is not network)
    if kind.kind == "vllm":
        return VllmEngineSampler(current, sampling, max_length, kind.gpu_memory, folder)
    return VllmServerSampler(kind, current, sampling, process)
