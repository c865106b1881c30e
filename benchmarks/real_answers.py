"""What base and trained models answer to general questions: the table of answers in docs/studies/real-model.md.

    cd real && python ../benchmarks/real_answers.py hs_codes sft-0 fused_sft-0 raft-0 fused_sft_anchored-0

Greedy, at most 24 tokens, as a server would prompt: each folder's own template.
"""

from __future__ import annotations

import sys
from pathlib import Path

from raft_tasks.config import load_config
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.sampling import SamplingParams

QUESTIONS = ["What is the capital of France?", "Give three tips for staying healthy.", "What is 7 plus 5?"]


def main(domain: str, runs: list[str]) -> None:
    base = load_config().base
    runs_folder = Path("artifacts", domain, "runs")
    models = {run: base.model_copy(update={"path": str(runs_folder / run / "model"), "revision": None}) for run in runs}
    print(f"| | {' | '.join(QUESTIONS)} |\n|---|{'---|' * len(QUESTIONS)}")
    for name, model in {"base": base, **models}.items():
        answers = TransformersBackend(model).generate(
            QUESTIONS, SamplingParams(temperature=0, max_tokens=24), [0, 0, 0]
        )
        print(f"| {name} | {' | '.join(' '.join(answer.text.split()) for answer in answers)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
