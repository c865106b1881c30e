"""What more rows, another judge and another prompt cost, in calls: exact counts, so any machine will do.

    python benchmarks/incremental.py [ROWS]

Rewriting, filtering by rule and fusing (one round of two candidates) of 2,000 made-up rows on a server of our own
(tests/endpoint_server.py), then again with each change. The aim: 1 % more rows cost at most 3 % more calls.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from endpoint_server import running, stats

from raft_tasks.config import Budget, Endpoint, load_config
from raft_tasks.generation.cached_backend import CallSession, ModelPool
from raft_tasks.generation.fusing import fuse
from raft_tasks.generation.judges import Judge, Judgement, fidelity_judge
from raft_tasks.generation.rewriting import rewrite
from raft_tasks.generation.semantic_filter import semantic_filter
from raft_tasks.schemas import Example


def brevity_judge(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]:
    return [Judgement(1 / len(text)) for text in candidates]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    config = load_config()
    chunk = config.rewrite.chunk_rows

    def examples(numbers: list[int]) -> list[Example]:
        return [
            Example(id=str(n), domain="d", question=f"What is {n}?", answer=f"{n * n}.", source=str(n), split="train")
            for n in numbers
        ]

    with running() as base_url, tempfile.TemporaryDirectory() as folder:
        model = Endpoint(
            base_url=base_url, model="m", seeds=True, options={}, length_field="max_tokens", api_key_env=None,
            concurrency=16, timeout_s=30, max_retries=3, price_per_million_input=0, price_per_million_output=0,
        )  # fmt: skip
        calls = CallSession(Path(folder) / "responses.sqlite", "", "fuse", Budget(tokens=None, money=None))

        def run(name: str, numbers: list[int], template: str, judge: Judge) -> int:
            pool = ModelPool(replace(calls, run=name), {"m": model}, {"m": {"base_url": base_url, "model": "m"}})
            writer = pool.backend("rewrite", "m")
            settings = config.fuse.model_copy(update={"template": template, "rounds": 1, "quorum": 1})
            rows = examples(numbers)
            before = stats(base_url)["served"]
            for start in range(0, len(rows), chunk):
                rewritten = rewrite(rows[start : start + chunk], writer, config.rewrite)
                filtered = semantic_filter(rewritten, [0.9] * len(rewritten), config.semantic_filter.tau, False)
                fuse(filtered, writer, {"judge": judge}, settings)
            made = stats(base_url)["served"] - before
            print(f"{name:38s} {made:6d} calls")
            return made

        numbers = list(range(count))
        more = sorted([*numbers, *range(0, count, 100)])  # one more in each hundred rows ...
        grown = [n + count if i and more[i - 1] == n else n for i, n in enumerate(more)]  # ... which nobody has seen
        first = run(f"{count} rows", numbers, "fuse.jinja", fidelity_judge)
        run("the same again", numbers, "fuse.jinja", fidelity_judge)
        new = run("1 % more rows, spread over the file", grown, "fuse.jinja", fidelity_judge)
        run("another judge", grown, "fuse.jinja", brevity_judge)
        other = Path(folder) / "other.jinja"
        other.write_text("{{ question }}\nReference answer: {{ answer }}\nMerge with: {{ rewritten }}\n")
        run("another fusion prompt", grown, str(other), fidelity_judge)
        print(f"1 % more rows: {100 * new / first:.2f} % more calls")
        calls.cache.close()


if __name__ == "__main__":
    main()
