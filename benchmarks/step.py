"""A whole RAFT optimiser step by our trainer against the same work assembled from TRL: time by phase, peak memory.

    python benchmarks/step.py                  # a Llama shape with a vocabulary of 128,256, on the CPU; about 6 minutes
    python benchmarks/step.py --project real   # the model and the fused rows of a project that ran, `make real`'s say

Beside them the floor: bare loops of transformers over as many rows and tokens, all rows of their mean length, in the
same order (prompts and decoded tokens, the teacher's pass, two passes forward and backward, AdamW), without padding,
sampling, losses of our own or a trainer; and a step of SFT alone by our trainer.

Both sides: the same model, rows, lengths, batch, sampling (temperature 1, whole distribution), teacher (a frozen copy
that sees the answer), T, K, AdamW. Each run is a child process of its own; runs alternate. The first step warms up.

TRL's side is TRL 1.16's own trainers over one model and one optimiser: `SDFTTrainer.training_step` (samples, scores by
teacher and student, leaves the gradient of its top-K loss on the student's support, alpha 0), the gradient times a
lambda, then `SFTTrainer.training_step` (its chunked cross-entropy) adds to it; clipping; AdamW. That is our order of
work, so TRL's side, too, holds the activations of one loss at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jinja2 import Template
from measuring import PeakMemory, machine, table
from workload import TEACHER, Lengths, highest, llama, make_model, make_pairs, phases, settings, train_ours

from raft_tasks import chat
from raft_tasks.artifacts import read_rows
from raft_tasks.config import load_config
from raft_tasks.model_loading import load_network, load_tokenizer, quiet
from raft_tasks.schemas import Fused, TrainingPair

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
PHASES = ("rollout", "teacher", "student", "optimiser")


def pairs_of(sizes: argparse.Namespace) -> list[TrainingPair]:
    """Rows for the warm-up step and those that are measured."""
    lengths, count = Lengths(sizes.question, sizes.answer, sizes.rollout), (sizes.steps + 1) * sizes.batch
    if sizes.project is None:
        return make_pairs(count, lengths)
    [domain] = load_config(sizes.project / "params.yaml").run.domains
    rows = read_rows(sizes.project / "artifacts" / domain / "fused.jsonl", Fused)
    return [TrainingPair(id=row.id, question=row.question, answer=row.fused) for row in rows][:count]


def ours(sizes: argparse.Namespace, folder: Path, work: Path, method: str = "raft") -> dict[str, Any]:
    lengths = Lengths(sizes.question, sizes.answer, sizes.rollout)
    config = settings(sizes.top_k, lengths, sizes.batch, precision="float32")
    done = train_ours(folder, "float32", config, pairs_of(sizes), work, method)
    rollout = statistics.mean(step.get("rollout_length", 0.0) for step in done.steps)
    steps = [phases(step) for step in done.steps]
    return {"cpu": done.cpu, "steps": steps, "rollout": rollout, "peak": done.peak, "highest": done.highest}


def floor(sizes: argparse.Namespace, folder: Path, work: Path) -> dict[str, Any]:
    """Bare loops over the tokens of one step after the other; `sizes.rollout` is the rollouts' mean length."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)
    pairs, seconds, teaching = pairs_of(sizes), [], Template(TEACHER)

    def tokens(texts: list[str]) -> int:
        return round(statistics.mean(len(chat.prompt_ids(tokenizer, None, text)) for text in texts))

    def random_ids(length: int) -> torch.Tensor:
        return torch.randint(100, model.config.vocab_size, (sizes.batch, length))

    def learn(length: int, kept: int) -> None:
        ids = random_ids(length)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept + 1).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -kept:].flatten()).backward()

    for step in range(1, sizes.steps + 1):
        rows = pairs[step * sizes.batch : (step + 1) * sizes.batch]
        prompt = tokens([row.question for row in rows])
        taught = tokens([teaching.render(question=row.question, answer=row.answer) for row in rows])
        answer = round(statistics.mean(len(tokenizer(row.answer)["input_ids"]) + 1 for row in rows))
        clock = [time.perf_counter()]
        with torch.no_grad():
            cache, ids = DynamicCache(config=model.config), random_ids(prompt)
            for _ in range(sizes.rollout):
                ids = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
            clock.append(time.perf_counter())
            model(input_ids=random_ids(taught + sizes.rollout), use_cache=False, logits_to_keep=sizes.rollout)
        clock.append(time.perf_counter())
        learn(prompt + sizes.rollout, sizes.rollout)
        learn(prompt + answer, answer)
        clock.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        clock.append(time.perf_counter())
        seconds.append({name: clock[i + 1] - clock[i] for i, name in enumerate(PHASES)})
    return {"steps": seconds}


def trl(sizes: argparse.Namespace, folder: Path, work: Path) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    pairs = pairs_of(sizes)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    both: dict[str, Any] = {
        "output_dir": str(work), "per_device_train_batch_size": sizes.batch, "gradient_checkpointing": False,
        "bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "learning_rate": 5e-6,
        "weight_decay": 0.01,
    }  # fmt: skip
    prompts = [[{"role": "user", "content": pair.question}] for pair in pairs]
    distilling = SDFTTrainer(
        model=model,
        args=SDFTConfig(
            max_prompt_length=None, max_completion_length=sizes.rollout, temperature=1.0, teacher_model_kind="base",
            distillation_mode="topk_logits", distillation_topk=sizes.top_k, distillation_alpha=0.0,
            distillation_add_tail=False, num_loss_tokens_to_skip=0, num_generations=1,
            teacher_prompt_template="reference : {privileged_context} question : {prompt}", **both,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": prompt, "privileged_context": pair.answer} for prompt, pair in zip(prompts, pairs, strict=True)]
        ),
        processing_class=tokenizer,
    )  # fmt: skip
    distilling.temperature = 1.5  # of the loss; the sampling keeps its own
    learning = SFTTrainer(
        model=model,
        args=SFTConfig(max_length=None, **both),
        train_dataset=Dataset.from_list(
            [
                {"prompt": prompt, "completion": [{"role": "assistant", "content": pair.answer}]}
                for prompt, pair in zip(prompts, pairs, strict=True)
            ]
        ),
        processing_class=tokenizer,
    )
    optimizer = distilling.create_optimizer()
    clock: dict[str, float] = defaultdict(float)
    timed(distilling, "_generate_transformers", clock, lambda *_, **__: "rollout")
    timed(
        distilling, "_forward_logits", clock, lambda model, **_: "teacher" if model is distilling.teacher_model else ""
    )
    distilling.current_gradient_accumulation_steps = learning.current_gradient_accumulation_steps = 1
    watch, rows = PeakMemory(), []
    for number, (asked, answered) in enumerate(
        zip(distilling.get_train_dataloader(), learning.get_train_dataloader(), strict=True)
    ):
        if number == 1:
            watch.start()
            begun_cpu = time.process_time()
        clock.clear()
        begun = time.perf_counter()
        model.train()
        distilling.training_step(model, asked, None)
        torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], 2.0)  # lambda
        learning.training_step(model, answered, None)
        before_optimiser = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad()
        ended = time.perf_counter()
        step = {"rollout": clock["rollout"], "teacher": clock["teacher"], "optimiser": ended - before_optimiser}
        rows.append(step | {"student": ended - begun - sum(step.values())})
    rollout = statistics.mean(distilling._metrics["train"]["completions/mean_length"][1:])
    cpu = (time.process_time() - begun_cpu) / sizes.steps
    return {"cpu": cpu, "steps": rows[1:], "rollout": rollout, "peak": watch.stop(), "highest": highest()}


def timed(owner: Any, name: str, clock: dict[str, float], phase: Any) -> None:
    """Adds the time of the calls of a method to the clock."""
    method = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        result = method(*args, **kwargs)
        clock[phase(*args, **kwargs)] += time.perf_counter() - begun
        return result

    setattr(owner, name, call)


SIDES: dict[str, Callable[..., dict[str, Any]]] = {
    "ours": ours,
    "TRL": trl,
    "SFT": partial(ours, method="sft"),
    "floor": floor,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--top-k", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--question", type=int, default=32, help="tokens")
    parser.add_argument("--answer", type=int, default=128, help="tokens")
    parser.add_argument("--rollout", type=int, default=128, help="tokens")
    parser.add_argument("--steps", type=int, default=2, help="measured, of each run")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--project", type=Path, help="a project that ran: its base model and its domain's fused rows")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    sizes = parser.parse_args(arguments)
    torch.set_num_threads(sizes.threads)
    with tempfile.TemporaryDirectory() as work:
        if sizes.side:
            print(json.dumps(SIDES[sizes.side](sizes, sizes.folder, Path(work))))
            return
        folder = model_of(sizes, Path(work) / "model")
        print(
            f"K {sizes.top_k}, batch {sizes.batch}, float32, {sizes.threads} thread(s), {sizes.repeats} runs of "
            f"{sizes.steps} steps in turn, median step; {machine('cpu')}\n"
        )
        given = sys.argv[1:] if arguments is None else arguments
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(sizes.repeats):
            for side, done in runs.items():
                command = [sys.executable, __file__, *given, "--side", side, "--folder", str(folder)]
                if side == "floor":
                    command += ["--rollout", str(round(runs["ours"][-1]["rollout"]))]
                child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                done.append(json.loads(child.stdout.splitlines()[-1]))
    print_comparison(runs, sizes.batch)


def model_of(sizes: argparse.Namespace, folder: Path) -> Path:
    """The model folder of both sides; says which it is."""
    if sizes.project is None:
        shape = f"V {sizes.vocabulary:,}, H {sizes.hidden}, {sizes.layers} layers"
        print(
            f"Llama, {shape}, question {sizes.question}, answer {sizes.answer}, rollout {sizes.rollout} tokens, ",
            end="",
        )
        return make_model(llama(sizes.vocabulary, sizes.hidden, sizes.layers), folder, torch.float32, "cpu")
    base = load_config(sizes.project / "params.yaml").base
    path = base.path if base.revision else str(sizes.project / base.path)
    base = base.model_copy(update={"path": path})
    print(f"{Path(path).stem}, fused rows of its domain, rollouts of at most {sizes.rollout} tokens, ", end="")
    tokenizer = load_tokenizer(base)
    with quiet():
        load_network(base, torch.float32, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def print_comparison(runs: dict[str, list[dict[str, Any]]], batch: int) -> None:
    """Medians over all steps of all runs, phase by phase, and the largest peaks."""
    seconds: dict[str, dict[str, float]] = {}
    for side, done in runs.items():
        steps = [step | {"whole step": sum(step.values())} for run in done for step in run["steps"]]
        seconds[side] = {phase: statistics.median(step[phase] for step in steps) for phase in (*PHASES, "whole step")}
    columns = {side: seconds[side] for side in ("TRL", "ours", "floor")}
    rows = [
        (
            phase,
            *(f"{column[phase]:.2f}" for column in columns.values()),
            *(f"{a[phase] / b[phase]:.2f}" for a, b in pairwise(columns.values())),
        )
        for phase in (*PHASES, "whole step")
    ]
    print(table(["seconds", *columns, "TRL / ours", "ours / floor"], rows))
    sft, raft = seconds["SFT"]["whole step"], seconds["ours"]["whole step"]
    print(
        f"\nstudent: both losses, forward and backward. A step of SFT alone: {sft:.2f} s; ours / SFT {raft / sft:.2f}\n"
    )
    compared = {side: runs[side] for side in ("TRL", "ours")}
    figures = {
        "samples per second": {side: batch / seconds[side]["whole step"] for side in compared},
        "CPU seconds per step": {side: min(run["cpu"] for run in done) for side, done in compared.items()},
        "tokens of a rollout": {side: done[0]["rollout"] for side, done in compared.items()},
        "peak MB of the steps": {side: max(run["peak"] for run in done) for side, done in compared.items()},
        "peak MB with loading and saving": {
            side: max(run["highest"] for run in done) for side, done in compared.items()
        },
    }
    rows = [
        (name, f"{value['TRL']:,.2f}", f"{value['ours']:,.2f}", f"{value['ours'] / value['TRL']:.2f}")
        for name, value in figures.items()
    ]
    print(table(["", "TRL", "ours", "ours / TRL"], rows), flush=True)


if __name__ == "__main__":
    main()
