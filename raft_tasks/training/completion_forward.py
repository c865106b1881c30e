"""One forward pass over prompts and completions, with the loss computed at the model's output head.

Student and teacher go through the same function: right-padded, without an attention mask. In a causal model no
position sees the padding behind it, so a batch gives what row by row gives (a test compares), and attention takes its
fast causal path.

Losses are computed inside the model's own forward pass, and there inside its output head's: under DDP and FSDP2 the
hooks of both then see a forward pass as they expect it, and a sharded head is one whole tensor while it is used.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raft_tasks.training.logits import Head, head_logits


@dataclass(frozen=True, eq=False)
class CompletionForward:
    """`model(completion_forward=CompletionForward(...))` returns what `head_fn` does."""

    prompts: list[list[int]]
    completions: list[list[int]]
    head_fn: Callable[[Tensor, Head], Any]  # (hidden states [T, H] of `completion_states`, output head) -> tensors
    dtype: torch.dtype | None = None  # of the hidden states; None: as the model gives them


def network_of(model: Any) -> PreTrainedModel:
    """The causal language model itself, in a model with adapters too."""
    network: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return network


def enable_completion_forward(model: Any) -> None:
    """Make `model(completion_forward=...)` work. Everything else (logits, `generate`, saving) stays as it is.

    The model must not be copied afterwards: a copy would run the original's layers.
    """
    network = network_of(model)
    initial_head, linear = output_head(network), network.get_output_embeddings()
    model_forward, linear_forward = model.forward, linear.forward

    def at_linear(hidden: Tensor, completion_forward: CompletionForward | None = None) -> Any:
        if completion_forward is None:
            return linear_forward(hidden)
        # the weights only now: a sharded head is whole here alone
        head = initial_head._replace(weight=linear.weight, bias=getattr(linear, "bias", None))
        dtype = completion_forward.dtype or hidden.dtype
        with torch.autocast(hidden.device.type, enabled=False):  # the losses choose their own precision
            return completion_forward.head_fn(hidden.to(dtype), head)

    @functools.wraps(model_forward)  # generate() reads the signature
    def forward(*args: Any, completion_forward: CompletionForward | None = None, **kwargs: Any) -> Any:
        if completion_forward is None:
            return model_forward(*args, **kwargs)
        hidden = completion_states(network, completion_forward.prompts, completion_forward.completions)
        return linear(hidden, completion_forward=completion_forward)

    model.forward, linear.forward = forward, at_linear


def completion_mask(completions: list[list[int]]) -> Tensor:
    """[B, L] bool: true at the positions that each completion has; L is the longest."""
    lengths = torch.tensor([len(tokens) for tokens in completions])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def completion_states(model: PreTrainedModel, prompts: list[list[int]], completions: list[list[int]]) -> Tensor:
    """Hidden states [T, H] that predict the completions' tokens, all completions in one list (T = sum of lengths).

    Row order is that of `completion_mask`: completion by completion, position by position.
    """
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    # the state at position t predicts token t + 1
    positions = [
        (row, position)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        for position in range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    ]
    row, position = torch.tensor(positions, device=hidden.device).T
    return hidden[row, position]


def output_head(model: PreTrainedModel) -> Head:
    """The output head of a causal language model, with its scale and soft cap where the architecture has them.

    Raises:
        ValueError: if head and hidden states do not give the model's own logits: an unsupported architecture.
    """
    linear = model.get_output_embeddings()
    if linear is None:
        raise ValueError(f"{type(model).__name__} has no output head; expected a causal language model")
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    head = Head(linear.weight, getattr(linear, "bias", None), scale, getattr(config, "final_logit_softcapping", None))
    with torch.no_grad():
        ids = torch.arange(4, device=model.device)[None] % len(linear.weight)
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        got = head_logits(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0], head).float()
    difference = (got - expected).abs().max().item() / (expected.abs().max().item() + 1e-6)
    if not difference < 0.02:  # bfloat16 rounds at .004
        raise ValueError(
            f"{type(model).__name__} computes its logits in a way that output_head does not support: relative "
            f"difference {difference:.3g}. Supported: a linear head, logit_scale, logits_scaling, "
            "final_logit_softcapping"
        )
    return head
