"""What the step benchmarks train: random models of real shapes, pairs of given lengths, and our training of them.

Settings come from params.yaml (method `raft`), so that a new key of the project needs no second place here; what a
benchmark varies it says itself.
"""

from __future__ import annotations

import csv
import resource
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import PeakMemory
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    SmolLM3Config,
)

from raft_tasks.config import Config, load_config
from raft_tasks.model_loading import quiet
from raft_tasks.schemas import TrainingPair
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.train import train_model

WORDS = 1_000
PROJECT = Path(__file__).parents[1]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
TEACHER = "reference : {{ answer }} question : {{ question }}"
ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 1}


def llama(vocabulary: int, hidden: int, layers: int) -> LlamaConfig:
    """The Llama 3.2 form at any size."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 64),
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=8_192,
        tie_word_embeddings=True,
        **ENDS,
    )


SHAPES: dict[str, PretrainedConfig] = {  # from the models' config.json on the hub, but for the special tokens
    "SmolLM3-3B": SmolLM3Config(
        vocab_size=128_256, hidden_size=2_048, intermediate_size=11_008, num_hidden_layers=36, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=65_536, tie_word_embeddings=True, **ENDS,
    ),
    "Llama-3.2-3B": LlamaConfig(
        vocab_size=128_256, hidden_size=3_072, intermediate_size=8_192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=131_072, tie_word_embeddings=True, **ENDS,
    ),
    "Phi-4-mini": Phi3Config(
        vocab_size=200_064, hidden_size=3_072, intermediate_size=8_192, num_hidden_layers=32, num_attention_heads=24,
        num_key_value_heads=8, max_position_embeddings=131_072, tie_word_embeddings=True, **ENDS,
    ),
    "tiny": llama(2_000, 64, 2),
}  # fmt: skip


class Lengths(NamedTuple):
    """Tokens; a prompt has 4 more of the chat template, an answer ends with one more."""

    question: int
    answer: int
    rollout: int


class Ours(NamedTuple):
    steps: list[dict[str, float]]  # rows of steps.csv, the first step (warm-up) left out
    cpu: float  # CPU seconds per step
    peak: float  # MB: the process's size (CPU) or the device's allocations, from the second step on
    highest: float  # MB: the same over the whole training, loading and saving included


def make_model(config: PretrainedConfig, folder: Path, dtype: torch.dtype, device: str) -> Path:
    """Random weights and a tokenizer with a chat template, saved as a model folder."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with quiet():
        model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; its vocabulary is a part of the models'."""
    marks = ["<unk>", "<pad>", "<end>", "<user>", "<assistant>", "<system>", ":", "reference", "question"]
    vocabulary = {word: number for number, word in enumerate([*marks, *(f"w{number}" for number in range(WORDS))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="<end>",
        extra_special_tokens=["<user>", "<assistant>", "<system>"],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_pairs(rows: int, lengths: Lengths) -> list[TrainingPair]:
    draw = torch.Generator().manual_seed(0)

    def text(words: int) -> str:
        return " ".join(f"w{number}" for number in torch.randint(WORDS, (words,), generator=draw).tolist())

    return [
        TrainingPair(id=f"row-{row}", question=text(lengths.question), answer=text(lengths.answer))
        for row in range(rows)
    ]


def settings(k: int, lengths: Lengths, batch: int, **train: Any) -> Config:
    """params.yaml with these sizes; `train` overrides more of its section of that name."""
    config = load_config(PROJECT / "params.yaml")
    raft = config.methods["raft"]
    assert raft.distillation is not None
    distillation = raft.distillation.model_copy(update={"top_k": k, "rollout_max_new_tokens": lengths.rollout})
    sizes = {"epochs": 1, "batch_size": batch, "micro_batch_size": batch, "max_length": 4_096, "learning_rate": 5e-6}
    return config.model_copy(
        update={
            "methods": {
                "raft": raft.model_copy(update={"distillation": distillation}),
                "sft": raft.model_copy(update={"distillation": None}),
            },
            "train": config.train.model_copy(update=sizes | {"checkpoint_steps": 10_000} | train),
        }
    )


def train_ours(
    folder: Path, dtype: str, config: Config, pairs: list[TrainingPair], work: Path, method: str = "raft"
) -> Ours:
    """The optimiser steps that `pairs` suffice for, on the model in `folder`; the first one only warms up."""
    steps = len(pairs) // config.train.batch_size - 1
    watch, cpu = PeakMemory(), []

    def after_step(done: int, *_: object) -> None:
        cpu.append(time.process_time())
        if done == 1:
            watch.start()
        if done == steps + 1:
            watch.stop()

    train_model(
        TrainingJob(
            pairs=pairs,
            model=config.base.model_copy(update={"path": str(folder), "revision": None, "dtype": dtype}),
            method=config.methods[method],
            train=config.train,
            template_text=TEACHER,
            seed=0,
            output=work / "output",
            checkpoints=work / "checkpoints",
        ),
        after_step,
    )
    with (work / "output" / "steps.csv").open(encoding="utf-8") as table:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(table)]
    return Ours(rows[1:], (cpu[-1] - cpu[0]) / steps, watch.peak, highest())


def highest() -> float:
    """MB: the most that this process ever had."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024 / 1e6


def phases(step: dict[str, float]) -> dict[str, float]:
    """Seconds of one row of steps.csv by phase; the optimiser has what is left."""
    seconds = {name: step["seconds"] * step.get(f"{name}_share", 0.0) for name in ("rollout", "teacher", "student")}
    return seconds | {"optimiser": step["seconds"] - sum(seconds.values())}
