"""RAFT's optimiser step on 3-4B shapes with random weights: seconds by phase, peak memory, ratio to the floor.

    python benchmarks/gpu_step.py                                    # all shapes, full and LoRA, on one GPU
    python benchmarks/gpu_step.py --shape Llama-3.2-3B --mode full   # one of them
    python benchmarks/gpu_step.py --shape tiny --device cpu          # does the script still work

Settings of the paper: batch 16, K 512, bfloat16 (full fine-tuning keeps float32 weights). Writes gpu_step.json and
gpu_step.md to --output. Every run is a child process; a sampler whose library is missing is left out and named.

The floor is what no implementation of this step goes below, from two ceilings measured first: bandwidth (a copy on the
device, bytes read and written) and matrix rate (a large product of random matrices).
- rollout: each decoding step reads the weights (in bfloat16) and the keys and values so far; the prompts' FLOPs.
- teacher: FLOPs of one forward pass over its prompts and the rollouts, and of its head at the rollouts.
- student: FLOPs of forward and backward passes over prompts and rollouts (whose loss needs K rows of the head, not
  counted) and over prompts and answers with the head; frozen weights need two products where trained ones need three.
- optimiser: AdamW reads weight, gradient and both moments and writes all but the gradient, in float32.
Attention counts as 2 x tokens^2 x hidden FLOPs per layer and forward pass (causal). Recomputed activations do not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import machine, synchronize, table
from transformers import PretrainedConfig
from workload import SHAPES, Lengths, make_model, make_pairs, phases, settings, train_ours

PHASES = ("rollout", "teacher", "student", "optimiser")
ADAPTER: dict[str, Any] = {"rank": 64, "alpha": 128, "dropout": 0.0, "targets": "all-linear"}
SAMPLERS: dict[str, dict[str, Any]] = {
    "generate": {"kind": "generate", "batch_size": 16},
    "continuous_batching": {"kind": "continuous_batching", "batch_size": 16},
    "vllm": {"kind": "vllm", "gpu_memory": 0.2},
}


@dataclass(frozen=True)
class Ceilings:
    bandwidth: float  # bytes per second
    matrix_rate: float  # FLOPs per second


def measured_ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    size, elements = (8_192, 2**30) if device == "cuda" else (256, 2**22)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    return Ceilings(
        bandwidth=2 * source.numel() * source.element_size() / median_time(lambda: target.copy_(source), device),
        matrix_rate=2 * size**3 / median_time(lambda: left @ right, device),
    )


def median_time(call: Any, device: str) -> float:
    times = []
    for _ in range(13):
        synchronize(device)
        begun = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[3:])  # the first warm up


def parameters(config: PretrainedConfig) -> tuple[int, int]:
    """Weights of the layers, and of the head (which is the embedding too, tied)."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings().weight.numel()
    return sum(parameter.numel() for parameter in model.base_model.parameters()) - head, head


def adapter_parameters(config: PretrainedConfig) -> int:
    """Weights of a LoRA adapter of every linear layer but the head."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(config).base_model
    linear = [layer for layer in layers.modules() if isinstance(layer, torch.nn.Linear)]
    return sum(ADAPTER["rank"] * (layer.in_features + layer.out_features) for layer in linear)


def floor(
    config: PretrainedConfig, lengths: Lengths, batch: int, lora: bool, dtype: torch.dtype, ceilings: Ceilings
) -> dict[str, float]:
    """Seconds of each phase."""
    layers, head = parameters(config)
    trained = adapter_parameters(config) if lora else layers + head
    width = dtype.itemsize
    prompt, answer = lengths.question + 4, lengths.answer + 1
    taught = lengths.question + lengths.answer + 8  # the teacher's prompt, Eq. 7

    def forward(tokens: int) -> float:
        attention = 2 * tokens**2 * config.hidden_size * config.num_hidden_layers
        return batch * (2.0 * layers * tokens + attention)

    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_width * width
    cache = batch * per_token * sum(prompt + position for position in range(lengths.rollout))
    passes = 2 if lora else 3  # forward, gradient of the activations, gradient of the weights
    student = passes * (forward(prompt + lengths.rollout) + forward(prompt + answer))
    student += passes * 2.0 * head * batch * answer
    return {
        "rollout": (lengths.rollout * (layers + head) * width + cache) / ceilings.bandwidth
        + forward(prompt) / ceilings.matrix_rate,
        "teacher": (forward(taught + lengths.rollout) + 2.0 * head * batch * lengths.rollout) / ceilings.matrix_rate,
        "student": student / ceilings.matrix_rate,
        "optimiser": 7 * 4 * trained / ceilings.bandwidth,
    }


def missing(sampler: str) -> str | None:
    """Why a sampler cannot run here."""
    if sampler == "vllm" and importlib.util.find_spec("vllm") is None:
        return "vllm is not installed"
    return None


def one_run(sizes: argparse.Namespace, shape: str, mode: str, sampler: str, folder: Path) -> dict[str, Any]:
    """Steps of one configuration, in this process."""
    lengths = Lengths(sizes.question, sizes.answer, sizes.rollout)
    k = min(sizes.top_k, SHAPES[shape].vocab_size // 4)
    config = settings(k, lengths, sizes.batch, micro_batch_size=sizes.micro_batch, precision="bfloat16")
    raft = config.methods["raft"].model_dump()
    raft["distillation"]["sampler"] = SAMPLERS[sampler]
    raft["lora"] = ADAPTER if mode == "lora" else None
    method = type(config.methods["raft"]).model_validate(raft)
    config = config.model_copy(update={"methods": {"raft": method}})
    with tempfile.TemporaryDirectory() as work:
        done = train_ours(folder, "bfloat16", config, make_pairs((sizes.steps + 1) * sizes.batch, lengths), Path(work))
    steps = [phases(step) for step in done.steps]
    return {
        "seconds": {phase: statistics.median(step[phase] for step in steps) for phase in PHASES},
        "rollout_tokens": statistics.mean(step["rollout_length"] for step in done.steps),
        "peak_MB": done.peak,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=[name for name in SHAPES if name != "tiny"])
    parser.add_argument("--mode", choices=["full", "lora"], nargs="+", default=["full", "lora"])
    parser.add_argument("--sampler", choices=SAMPLERS, nargs="+", default=list(SAMPLERS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--top-k", type=int, default=512)
    parser.add_argument("--question", type=int, default=64, help="tokens")
    parser.add_argument("--answer", type=int, default=192, help="tokens")
    parser.add_argument("--rollout", type=int, default=256, help="tokens")
    parser.add_argument("--steps", type=int, default=3, help="measured, after one to warm up")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder of gpu_step.json and gpu_step.md")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the model: this is a child
    sizes = parser.parse_args(arguments)
    if sizes.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here; expected one, or --device cpu with --shape tiny")
    if sizes.folder:
        print(json.dumps(one_run(sizes, sizes.shape[0], sizes.mode[0], sizes.sampler[0], sizes.folder)))
        return
    given = sys.argv[1:] if arguments is None else arguments
    result = measured(sizes, given)
    sizes.output.mkdir(parents=True, exist_ok=True)
    (sizes.output / "gpu_step.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (sizes.output / "gpu_step.md").write_text(as_markdown(result), encoding="utf-8")
    print(as_markdown(result))
    if any("failed" in run for run in result["runs"]):
        sys.exit(1)


def measured(sizes: argparse.Namespace, given: list[str]) -> dict[str, Any]:
    """All runs, their floors and the ceilings."""
    lengths, dtype = Lengths(sizes.question, sizes.answer, sizes.rollout), torch.bfloat16
    ceilings = measured_ceilings(sizes.device, dtype)
    runs, left_out = [], {name: why for name in sizes.sampler if (why := missing(name))}
    for shape in sizes.shape:
        with tempfile.TemporaryDirectory() as work:
            folder = make_model(SHAPES[shape], Path(work) / "model", dtype, sizes.device)
            for mode in sizes.mode:
                for sampler in (name for name in sizes.sampler if name not in left_out):
                    chosen = ["--shape", shape, "--mode", mode, "--sampler", sampler, "--folder", str(folder)]
                    command = [sys.executable, __file__, *given, *chosen]
                    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
                    run: dict[str, Any] = {"shape": shape, "mode": mode, "sampler": sampler}
                    if child.returncode:
                        runs.append(run | {"failed": f"exit status {child.returncode}, see its messages above"})
                        continue
                    run |= json.loads(child.stdout.splitlines()[-1])
                    run["floor"] = floor(SHAPES[shape], lengths, sizes.batch, mode == "lora", dtype, ceilings)
                    runs.append(run)
    return {
        "machine": machine(sizes.device),
        "settings": {name: value for name, value in vars(sizes).items() if name not in ("output", "folder")},
        "ceilings": asdict(ceilings),
        "left_out": left_out,
        "runs": runs,
    }


def as_markdown(result: dict[str, Any]) -> str:
    rows = []
    for run in result["runs"]:
        names = (f"{run['shape']}, {run['mode']}, {run['sampler']}",)
        if "failed" in run:
            rows.append((*names, run["failed"], *[""] * (len(PHASES) + 1)))
            continue
        whole, least = sum(run["seconds"].values()), sum(run["floor"].values())
        cells = [f"{run['seconds'][phase]:.3g} ({run['seconds'][phase] / run['floor'][phase]:.1f})" for phase in PHASES]
        rows.append((*names, f"{whole:.3g} ({whole / least:.1f})", *cells, f"{run['peak_MB'] / 1e3:.1f}"))
    ceilings, sizes = result["ceilings"], result["settings"]
    return "\n".join(
        [
            f"{result['machine']}; batch {sizes['batch']}, K {sizes['top_k']}, question {sizes['question']}, answer "
            f"{sizes['answer']}, rollout {sizes['rollout']} tokens, bfloat16, median of {sizes['steps']} steps. "
            f"Ceilings: {ceilings['bandwidth'] / 1e12:.3g} TB/s, {ceilings['matrix_rate'] / 1e12:.3g} TFLOP/s. "
            "In brackets: times the floor.",
            *(f"Left out: {name} ({why})." for name, why in result["left_out"].items()),
            "",
            table(["seconds per step", "whole", *PHASES, "peak GB"], rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
