"""Several processes: DDP and FSDP2 as accelerate sets them up, and what the training needs beside."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer


def set_up_fsdp2(trainer: Trainer) -> None:
    """FSDP2 on the CPU too, and its gradients and losses in float32."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    if trainer.args.device.type == "cpu":  # accelerate shards on GPUs alone, but what it calls works here as well
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        trainer.is_fsdp_enabled = True
    if trainer.args.bf16:  # accelerate's own policy would round gradients and losses to bfloat16 too
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        state.fsdp_plugin.mixed_precision_policy = policy


def no_sync(model: Any) -> AbstractContextManager:
    """Backward passes within leave their gradients to a later one's all-reduce.

    FSDP2 reduces all the same: what it would have to keep until then is what sharding saves, a whole gradient.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def is_sharded(model: Any) -> bool:
    return any(isinstance(layer, FSDPModule) for layer in model.modules())


@contextmanager
def unsharded(model: Any) -> Iterator[None]:
    """Sharded weights are whole within: gathered once for all tokens of a rollout, not for each."""
    shards = [layer for layer in model.modules() if isinstance(layer, FSDPModule)]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    yield
    for shard in shards:
        shard.reshard()
        shard.set_reshard_after_forward(shard is not model, recurse=False)


def gather_objects(items: list[Any], processes: int) -> list[Any]:
    """The items of all processes."""
    if processes == 1:
        return items
    from accelerate.utils import gather_object

    return list(gather_object(items))
