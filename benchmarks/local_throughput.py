"""What the local backend costs beside a bare batched generate loop over the same prompts; the aim is at most 1.2 times.

    python benchmarks/local_throughput.py [ROWS]

Prompts are the rewriting prompts of the archive domain, with the settings of `rewrite` in params.yaml. The bare loop
sorts by length, pads on the left and calls `model.generate`: greedily, then drawing with the same temperature and
top_p. Greedy texts must be equal; drawn ones differ (each of our rows has a stream of its own), so tokens per second
are compared. The backend runs behind an empty response cache, which keeps every answer.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from raft_tasks.config import Budget, Rewrite, load_config
from raft_tasks.generation.cached_backend import CallSession, ModelPool
from raft_tasks.generation.templates import render
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.sampling import SamplingParams

REPETITIONS = 3  # the fastest counts


def bare_loop(backend: TransformersBackend, prompts: list[str], settings: Rewrite, draw: bool) -> tuple[list[str], int]:
    """Texts and tokens of a plain loop with the backend's own model and tokenizer."""
    model, tokenizer = backend.model, backend.tokenizer
    tokenizer.padding_side = "left"
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
        for p in prompts
    ]
    order = sorted(range(len(chats)), key=lambda i: -len(chats[i]))
    texts, tokens = [""] * len(chats), 0
    sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p} if draw else {}
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        inputs = tokenizer([chats[i] for i in batch], add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"].to(backend.device),
                attention_mask=inputs["attention_mask"].to(backend.device),
                max_new_tokens=settings.max_new_tokens,
                **sampling,
            )
        drawn = output[:, inputs["input_ids"].shape[1] :]
        tokens += int((drawn != backend.pad).sum())
        for i, text in zip(batch, tokenizer.batch_decode(drawn, skip_special_tokens=True), strict=True):
            texts[i] = text
    return texts, tokens


def fastest(work: Callable[[int], tuple[list[str], int]]) -> tuple[list[str], int, float]:
    best: tuple[list[str], int, float] | None = None
    for repetition in range(REPETITIONS):
        began = time.perf_counter()
        texts, tokens = work(repetition)
        seconds = time.perf_counter() - began
        if best is None or seconds / max(tokens, 1) < best[2] / max(best[1], 1):
            best = (texts, tokens, seconds)
    assert best is not None
    return best


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 240
    config = load_config()
    rows = [json.loads(line) for line in Path("data/archive/pairs.jsonl").read_text().splitlines()][:count]
    prompts = [render(config.rewrite.template, question=row["question"], answer=row["answer"]) for row in rows]
    identity = {"path": config.base.path}
    with tempfile.TemporaryDirectory() as folder:
        calls = CallSession(Path(folder) / "responses.sqlite", "run", "rewrite", Budget(tokens=None, money=None))
        cached = ModelPool(calls, {"base": config.base}, {"base": identity}).backend("rewrite", "base")
        plain = cached.backend
        assert isinstance(plain, TransformersBackend)

        def ours(repetition: int, temperature: float) -> tuple[list[str], int]:
            # A prompt with a space more is another call: nothing comes from the cache.
            settings = config.rewrite
            completions = cached.generate(
                [prompt + " " * (1 + repetition) for prompt in prompts] if temperature else prompts,
                SamplingParams(temperature, settings.top_p, settings.max_new_tokens, settings.batch_size),
                range(repetition * count, (repetition + 1) * count),
            )
            return [row.text for row in completions], sum(row.tokens for row in completions)

        bare_loop(plain, prompts[: config.rewrite.batch_size], config.rewrite, draw=False)  # loads, warms up
        print(f"{len(prompts)} prompts, batches of {config.rewrite.batch_size}, {torch.get_num_threads()} thread(s)")
        for name, temperature in (("greedy", 0.0), ("drawn", config.rewrite.temperature)):
            draw = temperature > 0
            bare = fastest(lambda _, draw=draw: bare_loop(plain, prompts, config.rewrite, draw))  # type: ignore[misc]
            timed = fastest(partial(ours, temperature=temperature)) if draw else _once(ours)
            if not temperature:
                assert bare[0] == timed[0], "greedy texts differ"
            ratio = (timed[2] / timed[1]) / (bare[2] / bare[1])
            print(
                f"{name:7s} bare loop {bare[2]:6.2f} s, {bare[1] / bare[2]:6.0f} tokens/s; backend {timed[2]:6.2f} s, "
                f"{timed[1] / timed[2]:6.0f} tokens/s; {ratio:.2f} x the time per token"
            )
        calls.cache.close()


def _once(work: Callable[[int, float], tuple[list[str], int]]) -> tuple[list[str], int, float]:
    """Greedy answers do not depend on the seed: a second time they would come from the cache."""
    began = time.perf_counter()
    texts, tokens = work(0, 0.0)
    return texts, tokens, time.perf_counter() - began


if __name__ == "__main__":
    main()
