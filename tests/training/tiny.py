"""A tiny instruction model made on the spot: word-level tokenizer with a chat template, random Llama weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raft_tasks.artifacts import write_rows
from raft_tasks.config import AnchorLoss, Distillation, Launch, Lora, Method, Model, Replay, Train
from raft_tasks.schemas import Anchor, TrainingPair
from raft_tasks.training.job import TrainingJob

THINGS = ["reactor", "harbour", "motto", "colour"]
PLACES = ["figin", "arlo", "bexa", "corin", "dolm", "estra"]
VALUES = ["rope", "lamp", "stone", "green", "salt", "glass"]
WORDS = [
    *THINGS, *PLACES, *VALUES, "what", "is", "the", "of", "?", ".", ":",
    "background", "reference", "knowledge", "answer", "question", "based", "on",
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
TEACHER = (
    "background reference knowledge : {{ answer }}\n"
    "answer the question based on the reference knowledge : {{ question }}"
)


def word_tokenizer(words: list[str] = WORDS, template: str = TEMPLATE, **special: str) -> Any:
    """Whitespace words, one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<end>"} | special
    marks = dict.fromkeys([*special.values(), "<user>", "<assistant>", "<system>", "<end>"])
    vocabulary = {word: number for number, word in enumerate([*marks, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, extra_special_tokens=["<user>", "<assistant>", "<system>"], **special
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_llama(vocabulary: int, seed: int = 0, **changes: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 1, "initializer_range": 0.2,
    }  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def save_tiny(folder: Path, **changes: Any) -> Path:
    tokenizer = word_tokenizer()
    tiny_llama(changes.pop("vocab_size", len(tokenizer)), **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pairs() -> list[TrainingPair]:
    """12 pairs with answers of different lengths."""
    rows = []
    for number in range(12):
        thing, place, value = THINGS[number % 4], PLACES[number % 6], VALUES[number % 5]
        answer = f"the {thing} of {place} is {value} ." if number % 3 else value
        rows.append(TrainingPair(id=f"row-{number}", question=f"what is the {thing} of {place} ?", answer=answer))
    return rows


def train(**changes: Any) -> Train:
    """Two epochs of three steps for 12 pairs."""
    settings: dict[str, Any] = {
        "epochs": 2, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 3e-3, "weight_decay": 0.01,
        "warmup_ratio": 0.1, "max_grad_norm": 1.0, "precision": "float32", "max_length": 64, "too_long": "refuse",
        "checkpoint_steps": 2, "gradient_checkpointing": False, "group_by_length": False,
        "launch": Launch(processes=1, strategy="none"),
        "loss_spike": {"factor": 10.0, "steps": 5},
    }  # fmt: skip
    return Train(**(settings | changes))


def distillation(**changes: Any) -> Distillation:
    settings: dict[str, Any] = {
        "teacher": "answer_conditioned", "kl_weight": "ema", "kl_weight_max": 10.0, "ema_beta": 0.9,
        "template": "teacher.jinja", "temperature": 1.5, "top_k": 8,
        "tail_bucket": False, "rollout_temperature": 1.0, "rollout_max_new_tokens": 6,
        "sampler": {"kind": "generate", "batch_size": 64}, "rollout_steps": 1, "probe_steps": 2,
        "sampling_logprob_tolerance": 0.05,
        "teacher_dtype": None, "teacher_device": None, "teacher_adapter": None,
    }  # fmt: skip
    return Distillation(**(settings | changes))


def method(**changes: Any) -> Method:
    """Plain SFT, but for `changes`."""
    return Method(**changes)


LORA = Lora(rank=4, alpha=8, dropout=0.0, targets="all-linear")
ANCHORED = AnchorLoss(set="some", loss="kl", batch=3, weight=0.5, weight_max=2.0, logits="stored")
REPLAY = Replay(files=["data/replay/*.jsonl"], share=0.2)
METHODS = {
    "sft": method(),
    "sdft": method(target="rewrite"),
    "fused_sft": method(target="fused"),
    "dft": method(token_weighting="dft"),
    "eaft": method(token_weighting="eaft"),
    "on_policy": method(distillation=distillation(teacher="plain")),
    "on_policy_sdft": method(target="fused", sft=False, distillation=distillation(kl_weight=1.0)),
    "raft": method(target="fused", distillation=distillation()),
    "sft_lora": method(lora=LORA),
    "raft_lora": method(target="fused", distillation=distillation(), lora=LORA),
}


def job(model: Model, folder: Path, method: str | Method = "raft", **changes: Any) -> TrainingJob:
    """A training of the 12 pairs into `folder`/output, but for `changes`."""
    settings: dict[str, Any] = {
        "pairs": pairs(), "model": model, "method": METHODS[method] if isinstance(method, str) else method,
        "train": train(), "template_text": TEACHER, "seed": 0, "output": folder / "output",
        "checkpoints": folder / "ck",
    }  # fmt: skip
    return TrainingJob(**(settings | changes))


def some_anchors() -> list[Anchor]:
    """Eight general turns of different lengths, about other things than the training pairs."""
    return [
        Anchor(
            id=f"anchor-{number:05d}",
            prompt=f"{PLACES[number % 6]} is what {THINGS[number % 3]} ?",
            answer=" ".join([VALUES[number % 6]] * (1 + number % 4)),
        )
        for number in range(8)
    ]


def save_anchors(folder: Path, model: Path, k: int = 8) -> Path:
    """A set as the stage `anchors` writes it, with what the model in `model` says."""
    import torch

    from raft_tasks.model_loading import load_model
    from raft_tasks.training.anchor_logits import LOGITS, ROWS, AnchorLogits, encode_anchors
    from raft_tasks.training.conversations import Encoder

    base, tokenizer = load_model(Model(path=str(model), revision=None, dtype="float32", system=None), torch.float32)
    folder.mkdir()
    write_rows(folder / ROWS, some_anchors())
    rows = encode_anchors(some_anchors(), Encoder(tokenizer, 64))
    AnchorLogits.compute(base, rows, k, batch_size=3).save(folder / LOGITS)
    return folder
