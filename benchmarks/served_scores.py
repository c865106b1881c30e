"""The domain score of a trained model through a real server, started by its card's commands, beside the harness's.

    python benchmarks/served_scores.py real hs_codes fused_sft_anchored-0 llama.cpp --count 50 --output served.jsonl
    python benchmarks/served_scores.py --table benchmarks/studies/served.jsonl

PROJECT has run its benchmarks and is only read. Answers are greedy, to the domain's first held-out questions.
vLLM and llama.cpp need environments of their own (docs/guides/serving.md).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import time
from contextlib import chdir
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from model_server import card_commands, serving_by_card

from raft_tasks.artifacts import read_rows
from raft_tasks.checks import score_answer
from raft_tasks.config import Endpoint, load_config
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.generation.endpoint_backend import EndpointBackend
from raft_tasks.merged_folder import write_whole
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Example, ItemResult, end_with
from raft_tasks.training.usage import with_usage

OPTIONS = {
    "vLLM": ("--max-model-len", "512", "--enforce-eager"),
    "transformers": ("--device", "cpu"),
    "llama.cpp": ("--n_ctx", "1024", "--n_threads", "1"),
}

CONCURRENCY = {"vLLM": 16, "transformers": 1, "llama.cpp": 1}
EXTRA = {"llama.cpp": {"repeat_penalty": 1.0}}  # its own default is 1.1, which changes greedy answers


def measure(project: Path, domain: str, run: str, server: str, params: Path, dtype: str, count: int) -> dict[str, Any]:
    """Ask the server `count` questions; scores and equal answers, with what the harness's outcomes say of the same."""
    config = load_config(params)
    base = config.base.model_copy(update={"dtype": dtype})
    with chdir(project):
        rows = read_rows(Path(f"artifacts/{domain}/examples/test.jsonl"), Example)[:count]
        items = read_rows(Path(f"artifacts/{domain}/benchmarks/{run}/items.jsonl"), ItemResult)
    outcomes = {item.id: item for item in items if item.task == DOMAIN_TASK}
    checks, bound = config.domains[domain].checks, config.benchmark.max_new_tokens
    with TemporaryDirectory() as name:
        work, folder = Path(name), Path(name) / "model"
        write_whole(
            config.base.model_copy(update={"path": str(project / f"artifacts/{domain}/runs/{run}/model")}), folder
        )
        (folder / "README.md").write_text(with_usage("", folder, base))
        shutil.copy(params, work / "params.yaml")
        command = card_commands((folder / "README.md").read_text(), server)
        with serving_by_card(server, folder, work, *OPTIONS[server]) as address:
            settings = Endpoint(
                base_url=address, model=str(folder), concurrency=CONCURRENCY[server], options=EXTRA.get(server, {})
            )
            backend = EndpointBackend(settings, {})
            prompts = [end_with(row.history, row.question) for row in rows]
            began = time.perf_counter()
            drawn = backend.generate(prompts, SamplingParams(temperature=0, max_tokens=bound), [0] * count)
            seconds = time.perf_counter() - began
    failures = [answer.failure for answer in drawn if answer.failure and answer.failure.kind != "empty"]
    if failures:
        raise SystemExit(f"{server}: {len(failures)} of {count} questions without an answer: {failures[0]}")
    scores = [
        score_answer(answer.text, row.answer, row.expected, row.details, checks)["acc"]
        for row, answer in zip(rows, drawn, strict=True)
    ]
    pairs = [(outcomes[row.id], answer) for row, answer in zip(rows, drawn, strict=True)]
    differing = [[item.answer, answer.text] for item, answer in pairs if item.answer.strip() != answer.text.strip()]
    return {
        "domain": domain, "run": run, "server": server, "dtype": dtype, "command": command, "options": OPTIONS[server],
        "extra": EXTRA.get(server, {}),
        "questions": count, "harness": sum(item.metrics["acc"] for item, _ in pairs) / count,
        "server_score": sum(scores) / count,
        "equal_answers": count - len(differing),
        "equal_scores": sum(item.metrics["acc"] == score for (item, _), score in zip(pairs, scores, strict=True)),
        "differing": differing,
        "seconds": round(seconds, 1), "date": str(date.today()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores shared with other work, no GPU",
    }  # fmt: skip


def table(file: Path) -> str:
    heads = ("model", "server", "dtype", "sent beside temperature 0", "questions", "harness", "server", "equal answers")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---:|---:|---:|---:|"]
    for row in map(json.loads, file.read_text().splitlines()):
        scores = f"{row['harness']:.1%}", f"{row['server_score']:.1%}"
        cells = [
            f"`{row['domain']}` {row['run']}",
            row["server"],
            row["dtype"],
            json.dumps(row["extra"]),
            row["questions"],
        ]
        cells += scores
        cells.append(f"{row['equal_answers']} of {row['questions']}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, nargs="?")
    parser.add_argument("domain", nargs="?")
    parser.add_argument("run", nargs="?")
    parser.add_argument("server", nargs="?", choices=OPTIONS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--params", type=Path, help="where PROJECT's own are of an older version")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table:
        print(table(given.table))
        return
    params = given.params or given.project / "params.yaml"
    names = given.domain, given.run, given.server
    row = measure(given.project.absolute(), *names, params.absolute(), given.dtype, given.count)
    with given.output.open("a") as out:
        out.write(json.dumps(row, ensure_ascii=False) + "\n")
    print({key: value for key, value in row.items() if key != "differing"})


if __name__ == "__main__":
    main()
