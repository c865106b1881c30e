"""`python -m pocket_world.backbone [--recipe FILE]` trains the backbone from scratch and writes its model folder.

A small Qwen3 (a Llama whose queries and keys are normalised) on packed rows of exercises, each conversation seeing only
itself. A first backbone without that normalisation ended with large query and key matrices (spectral norms of 6) and
could not copy two words. Muon moves the matrices, AdamW the embeddings and norms; the loss is that of the answers'
tokens plus a small share of the other tokens', so that the model can also invent user turns. Minutes on one core,
without checkpoints.
"""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pocket_world.exercises import Exercises
from pocket_world.recipe import RECIPE, BackboneSettings, Recipe, load_recipe
from pocket_world.tokenizer import END, build_tokenizer
from pocket_world.world import build_world
from raft_tasks.artifacts import atomic_folder


@dataclass(frozen=True)
class Batch:
    """Packed conversations; B rows of T tokens."""

    tokens: Tensor  # [B, T]
    positions: Tensor  # [B, T], from 0 in every conversation
    sees: Tensor  # [B, 1, T, T], True where a query may look at a key
    weights: Tensor  # [B, T], of each token as a target; 0 for padding and first tokens


def encode(
    messages: tuple[dict[str, str], ...], tokenizer: PreTrainedTokenizerFast, prompt_loss: float
) -> tuple[list[int], list[float]]:
    """Token ids of the rendered conversation, and their weights as targets: 1 in answers, `prompt_loss` elsewhere."""
    tokens: list[int] = []
    weights: list[float] = []
    for message in messages:
        answer = message["role"] == "assistant"
        head = tokenizer.encode(f"<|im_start|>{message['role']}\n")
        body = tokenizer.encode(f"{message['content']}{END}")
        tail = tokenizer.encode("\n")
        tokens += head + body + tail
        weights += [prompt_loss] * len(head) + [1.0 if answer else prompt_loss] * len(body) + [prompt_loss] * len(tail)
    weights[0] = 0.0
    return tokens, weights


def batches(
    exercises: Exercises, tokenizer: PreTrainedTokenizerFast, settings: BackboneSettings
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for every step; rows are filled with whole conversations."""
    rng = random.Random(f"exercises-{settings.seed}")
    waiting: tuple[list[int], list[float]] | None = None
    shape = (settings.rows, settings.row_tokens)
    for step in range(settings.steps):
        tokens = torch.full(shape, tokenizer.pad_token_id)
        positions, documents, weights = torch.zeros(shape, dtype=torch.long), torch.zeros(shape), torch.zeros(shape)
        for row in range(settings.rows):
            filled, document = 0, 0
            while True:
                if waiting is None:
                    messages = exercises.draw(rng, step / settings.steps)
                    waiting = encode(messages, tokenizer, settings.prompt_loss)
                end = filled + len(waiting[0])
                if len(waiting[0]) > settings.row_tokens:
                    raise ValueError(f"a conversation of {len(waiting[0])} tokens in rows of {settings.row_tokens}")
                if end > settings.row_tokens:
                    break
                document += 1
                tokens[row, filled:end] = torch.tensor(waiting[0])
                weights[row, filled:end] = torch.tensor(waiting[1])
                positions[row, filled:end] = torch.arange(end - filled)
                documents[row, filled:end] = document
                filled, waiting = end, None
        same = documents[:, None, :, None] == documents[:, None, None, :]
        earlier = torch.ones(settings.row_tokens, settings.row_tokens, dtype=torch.bool).tril()
        yield step, Batch(tokens, positions, same & earlier, weights)


def batch_loss(model: Qwen3ForCausalLM, batch: Batch, bfloat16: bool) -> Tensor:
    """Weighted mean cross-entropy of the next tokens."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = model(
            input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.sees, use_cache=False
        ).logits
    weights = batch.weights[:, 1:].flatten()
    counted = weights > 0
    targets = batch.tokens[:, 1:].flatten()[counted]
    losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1)[counted].float(), targets, reduction="none")
    return (losses * weights[counted]).sum() / weights.sum()


def rate(step: int, settings: BackboneSettings) -> float:
    """The learning rates' factor: linear up, constant, linear down to zero."""
    left = (settings.steps - step) / max(1.0, settings.decay_share * settings.steps)
    return min(1.0, (step + 1) / settings.warmup_steps, left)


def build_model(tokenizer: PreTrainedTokenizerFast, settings: BackboneSettings) -> Qwen3ForCausalLM:
    torch.manual_seed(settings.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            head_dim=settings.hidden // settings.heads,
            intermediate_size=settings.ffn,
            max_position_embeddings=settings.positions,
            rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The trained backbone, in evaluation mode; every draw comes from the recipe's seeds."""
    settings = recipe.backbone
    model = build_model(tokenizer, settings)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=settings.matrix_lr, weight_decay=0.0)
    adam = torch.optim.AdamW(others, lr=settings.other_lr, betas=(0.9, 0.95), weight_decay=0.0)
    optimizers = {muon: settings.matrix_lr, adam: settings.other_lr}
    began, recent = time.perf_counter(), 0.0
    for step, batch in batches(Exercises(build_world(recipe.world)), tokenizer, settings):
        for optimizer, full in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = full * rate(step, settings)
        loss = batch_loss(model, batch, settings.bfloat16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        recent += loss.item()
        if (step + 1) % 50 == 0:
            passed = time.perf_counter() - began
            print(f"step {step + 1}/{settings.steps}  loss {recent / 50:.4f}  {passed:.0f} s", flush=True)
            recent = 0.0
    return model.eval()


MODEL_CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# pocket-base

A small Qwen3 ({parameters:,} parameters) trained from scratch on a generated world: 300 facts, verifiable instructions,
reading, rewriting and merging. It exists so that domain fine-tuning can be tried, measured and broken in minutes
without a network; it knows nothing outside its world and its tokenizer has no other words.

- Made by `python -m pocket_world.backbone` from `{recipe}`: world seed {world_seed}, training seed {seed},
  {steps} steps.
- Data: generated by `pocket_world`; no external text, no external model. Domain facts are not in it.
- Chat template: ChatML; end of turn `<|im_end|>`, padding `<|pad|>`.
- Figures: `pocket_world/README.md`. Licence: Apache-2.0.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the pocket world's backbone.")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    path = parser.parse_args().recipe
    recipe = load_recipe(path)
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = recipe.backbone.positions
    model = train(recipe, tokenizer)
    with atomic_folder(Path(recipe.backbone.folder)) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card = MODEL_CARD.format(
            parameters=model.num_parameters(),
            recipe=path.name,
            world_seed=recipe.world.seed,
            seed=recipe.backbone.seed,
            steps=recipe.backbone.steps,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"{recipe.backbone.folder}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
