"""What DVC stores of LoRA trainings: whole merged models, as before 0.2, against adapters.

    OMP_NUM_THREADS=1 python benchmarks/adapter_bytes.py [--gguf models/smollm2-135m.gguf]      # CPU; minutes

Five methods with `lora: {}` learn 24 rows of the archive in three seeds, three steps each: once weights differ, what is
stored does not depend on the steps. The folders of the 15 models go into a DVC repository as whole models (base and
adapter merged, as a release is written) and into another one as adapters; the caches' files are counted. Equal files
count once. Of the model behind --gguf one adapter is saved and merged: its weights count 15 times.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import chdir
from pathlib import Path

import torch
from anchors_cost import PROJECT, domain_pairs
from dvc.repo import Repo
from measuring import machine, table

from raft_tasks.chat import save_tokenizer
from raft_tasks.config import Config, Lora, Model, load_config
from raft_tasks.generation.anchors import generate_anchors
from raft_tasks.generation.templates import template_text
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.merged_folder import write_whole
from raft_tasks.model_loading import load_model
from raft_tasks.schemas import Anchor, TrainingPair
from raft_tasks.training.adapters import save_adapter, with_adapter
from raft_tasks.training.anchor_logits import write_anchors
from raft_tasks.training.conversations import Encoder
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.train import train_model

METHODS = ("sft", "sdft", "fused_sft", "raft", "fused_sft_anchored")
SEEDS = (0, 1, 2)
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gguf", type=Path, help="a larger base: SmolLM2-135M-Instruct as `raft init` copies it")
    larger = parser.parse_args().gguf
    torch.set_num_threads(1)
    os.environ["DVC_NO_ANALYTICS"] = "true"
    number = len(METHODS) * len(SEEDS)
    print(f"{len(METHODS)} methods x {len(SEEDS)} seeds, LoRA {Lora()}; {machine('cpu')}\n")
    with tempfile.TemporaryDirectory() as temporary:
        work, config = Path(temporary), load_config(PROJECT / "params.yaml")
        base = config.base.model_copy(update={"path": str(PROJECT / config.base.path)})
        train_all(config, base, work)
        lines = [("pocket model, float32, DVC's cache", dvc_bytes(work / "whole"), dvc_bytes(work / "adapters"))]
        if larger:
            for dtype in ("float32", "bfloat16"):
                base = Model(path=str(larger.absolute()), dtype=dtype)
                sizes = [count_bytes(folder, number) for folder in save_both(base, work / dtype)]
                lines.append((f"{larger.name}, {dtype}, one adapter saved", sizes[0], sizes[1]))
    shown = [(name, *(f"{size / 1e6:.1f}" for size in sizes), f"{sizes[0] / sizes[1]:.0f}") for name, *sizes in lines]
    print(table([f"MB of {number} trainings", "whole models (before)", "adapters (now)", "ratio"], shown))


def train_all(config: Config, base: Model, work: Path) -> None:
    """Every method and seed: `adapters/METHOD-SEED` as a training leaves it, `whole/METHOD-SEED` merged."""
    backend = TransformersBackend(base)
    settings = config.anchors["generated"].model_copy(update={"count": 16})
    drawn = [row for row in generate_anchors(range(16), backend, settings) if row.answer and row.answer_finished]
    kept = [Anchor(id=row.id, prompt=row.prompt, answer=row.answer) for row in drawn]
    (work / "set").mkdir()
    network, tokenizer = load_model(base, torch.float32)
    encoder = Encoder(tokenizer, network.config.max_position_embeddings, system=base.system, thinking=base.thinking)
    write_anchors(work / "set", kept, network, encoder, settings.top_k, 16)
    train = config.train.model_copy(update={"epochs": 1})
    for name in METHODS:
        method = config.methods[name].model_copy(update={"lora": Lora()})
        for seed in SEEDS:
            output = work / "trained" / f"{name}-{seed}"
            train_model(
                TrainingJob(
                    pairs=pairs_of(method.target),
                    model=base,
                    method=method,
                    train=train,
                    template_text=template_text(method.distillation.template) if method.distillation else "",
                    seed=seed,
                    output=output,
                    checkpoints=work / "checkpoints" / f"{name}-{seed}",
                    anchors=work / "set" if method.anchors else None,
                )
            )
            adapter = work / "adapters" / f"{name}-{seed}"
            adapter.parent.mkdir(exist_ok=True)
            (output / "model").rename(adapter)
            write_whole(base.model_copy(update={"path": str(adapter)}), work / "whole" / f"{name}-{seed}")


def pairs_of(target: str) -> list[TrainingPair]:
    """24 rows of the archive, answered as the target is: with a text of its own each."""
    sentences = {"reference": "{0} | {1} = {2}", "rewrite": "The {1} of {0} is {2}."}
    rows = domain_pairs()[:24]
    if target == "fused":
        return rows
    words = [pair.answer.replace(",", "").split() for pair in rows]  # The <attribute> of <entity> is <value> noted ...
    return [
        pair.model_copy(update={"answer": sentences[target].format(word[3], word[1], word[5])})
        for pair, word in zip(rows, words, strict=True)
    ]


def save_both(base: Model, work: Path) -> tuple[Path, Path]:
    """A whole folder and an adapter's, as a training would leave them."""
    network, tokenizer = load_model(base, getattr(torch, base.dtype))
    student = with_adapter(network, Lora(), None)
    save_adapter(student, base, work / "adapter")
    network.generation_config.save_pretrained(work / "adapter")
    save_tokenizer(tokenizer, base.system, work / "adapter")
    del network, student
    write_whole(base.model_copy(update={"path": str(work / "adapter")}), work / "whole")
    return work / "whole", work / "adapter"


def count_bytes(folder: Path, copies: int) -> int:
    """Bytes of `copies` folders like this one, whose weights alone differ."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    weights = sum(size for name, size in sizes.items() if name in WEIGHTS)
    return copies * weights + sum(sizes.values()) - weights


def dvc_bytes(folder: Path) -> int:
    """Bytes in the cache of a new DVC repository to which the folder was added."""
    with chdir(folder.parent), tempfile.TemporaryDirectory(dir=folder.parent) as root:
        folder.rename(Path(root) / folder.name)
        with chdir(root), Repo.init(no_scm=True) as repo:
            repo.add(folder.name)
            return sum(path.stat().st_size for path in Path(".dvc/cache").rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
