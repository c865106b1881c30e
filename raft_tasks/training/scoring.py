"""Hidden states of a model at the positions that predict given completions; what is computed of them at its head.

Student and teacher are scored by the same function: right-padded, without an attention mask. In a causal model no
position sees the padding behind it, so a batch gives what one-by-one scoring gives (a test compares), and attention
takes its fast causal path.

Losses are computed inside the model's own forward pass, and there inside its output head's: under DDP and FSDP2 the
hooks of both then see a forward pass as they expect it, and a sharded head is one whole tensor while it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raft_tasks.training.losses import Head, head_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Scoring:
    """One forward pass: `model(scoring=Scoring(...))` returns what `at_head` does."""

    prompts: list[list[int]]
    completions: list[list[int]]
    at_head: Callable[[Tensor, Head], Any]  # (hidden states [T, H] of `completion_states`, output head) -> tensors
    dtype: torch.dtype | None = None  # of the hidden states; None: as the model gives them


def network_of(model: Any) -> PreTrainedModel:
    """The causal language model itself, in a model with adapters too."""
    network: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return network


def enable_scoring(model: Any) -> None:
    """Make `model(scoring=...)` work. Everything else (logits, `generate`, saving) stays as it is.

    The model must not be copied afterwards: a copy would run the original's layers.
    """
    network = network_of(model)
    known, linear = output_head(network), network.get_output_embeddings()
    own_forward, own_linear = model.forward, linear.forward

    def at_linear(hidden: Tensor, scoring: Scoring | None = None) -> Any:
        if scoring is None:
            return own_linear(hidden)
        head = known._replace(weight=linear.weight, bias=getattr(linear, "bias", None))  # whole only now, if sharded
        with torch.autocast(hidden.device.type, enabled=False):  # the losses choose their own precision
            return scoring.at_head(hidden if scoring.dtype is None else hidden.to(scoring.dtype), head)

    @functools.wraps(own_forward)  # generate() reads the signature
    def forward(*args: Any, scoring: Scoring | None = None, **kwargs: Any) -> Any:
        if scoring is None:
            return own_forward(*args, **kwargs)
        return linear(completion_states(network, scoring.prompts, scoring.completions), scoring=scoring)

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
    where = [
        (number, position)
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        for position in range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    ]
    row, position = torch.tensor(where, device=hidden.device).T
    return hidden[row, position]


def output_head(model: PreTrainedModel) -> Head:
    """The output head of a causal language model, with its scale and soft cap where the architecture has them.

    Raises:
        ValueError: if head and hidden states do not give the model's own logits: an architecture that we do not know.
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
    apart = (got - expected).abs().max().item() / (expected.abs().max().item() + 1e-6)
    if not apart < 0.02:  # bfloat16 rounds at .004
        raise ValueError(
            f"{type(model).__name__} computes its logits in a way that scoring.output_head does not know: relative "
            f"difference {apart:.3g}. Supported: a linear head, logit_scale, logits_scaling, final_logit_softcapping"
        )
    return head
