"""Ingest and hygiene on synthetic rows: rows a second and peak memory, each size in a process of its own.

    python benchmarks/ingest_scale.py                 # 50,000, 200,000 and 1,000,000 rows
    python benchmarks/ingest_scale.py 20000           # other sizes

The rows are sentences of made-up words, about 60 words a row; of every hundred, two repeat an earlier row, two nearly,
one repeats a benchmark's item, one holds an e-mail address and one is empty. Every rule is on except the language's
(`--language` adds it). The files, and what ingest puts down meanwhile, lie in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from raft_tasks.config import Columns, Domain, Hygiene, Ingest, SplitBySource
from raft_tasks.sources.contamination import BenchmarkIndex
from raft_tasks.sources.ingestion import ingest_rows

SIZES = [50_000, 200_000, 1_000_000]
SYLLABLES = ["ba", "do", "fi", "ga", "ke", "lu", "mi", "no", "pa", "re", "si", "to", "ve", "xu", "zo"]
ITEMS = 1000


def vocabulary(rng: random.Random) -> list[str]:
    return ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(30_000)]


def sentence(rng: random.Random, words: list[str], length: int) -> str:
    return " ".join(rng.choices(words, k=length)).capitalize() + "."


def benchmark_items() -> list[tuple[str, str]]:
    rng = random.Random(1)
    words = vocabulary(rng)
    return [(f"made_up item {n}", sentence(rng, words, 25)) for n in range(ITEMS)]


def write_rows(path: Path, count: int) -> None:
    rng = random.Random(0)
    words = vocabulary(rng)
    items = benchmark_items()
    recent: list[dict[str, str]] = []
    with path.open("w", encoding="utf-8") as out:
        for number in range(count):
            kind = number % 100
            row = {"q": sentence(rng, words, 12), "a": sentence(rng, words, 48), "s": f"document {number // 20}"}
            if recent and kind in (10, 60):
                row = rng.choice(recent)
            elif recent and kind in (20, 70):
                row = rng.choice(recent) | {"a": rng.choice(recent)["a"] + " " + rng.choice(words)}
                row["q"] = next(r["q"] for r in recent if row["a"].startswith(r["a"]))
            elif kind == 30:
                row["a"] = row["a"] + " " + rng.choice(items)[1]
            elif kind == 40:
                row["a"] = row["a"] + " Write to someone@example.org."
            elif kind == 50:
                row["a"] = ""
            elif kind < 10:
                recent = [*recent[-50:], row]
            out.write(json.dumps(row) + "\n")


def measure(folder: Path, language: str | None) -> None:
    domain = Domain(
        files=["rows.jsonl"],
        hub=None,
        columns=Columns(id=None, question="q", answer="a", source="s", split=None, expected=None, details=None),
        chat=None,
        split=SplitBySource(by="source", validation=0.02, test=0.02, seed=0),
        hygiene=Hygiene(near_duplicates=0.8, contamination=0.5, language=language, privacy="flag"),
    )
    work = folder / "work"
    work.mkdir()
    began = time.perf_counter()
    bounds = Ingest(min_characters=1, max_characters=4000, max_rejected=1.0)
    ingested = ingest_rows("made_up", domain, bounds, folder, work, BenchmarkIndex(benchmark_items(), 0.5))
    counts: Counter[str] = Counter()
    with (folder / "out.jsonl").open("w", encoding="utf-8") as out:
        for line in ingested.lines():
            out.write(line.text + "\n")
            counts[line.rule or line.artifact] += 1
    seconds, processor = time.perf_counter() - began, time.process_time()
    rows = len(ingested.state)
    ingested.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    size = sum(path.stat().st_size for path in work.iterdir()) / 2**20
    print(
        f"{rows:>9,} rows  {seconds:6.1f} s ({processor:.1f} s of processor)  {rows / seconds:6,.0f} rows/s  "
        f"peak {peak:5,.0f} MiB  {size:6,.0f} MiB on disk  {dict(sorted(counts.items()))}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--language", default=None)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        measure(arguments.folder, arguments.language)
        return
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder) / "rows.jsonl", size)
            language = ["--language", arguments.language] if arguments.language else []
            subprocess.run([sys.executable, __file__, "--folder", folder, *language], check=True)


if __name__ == "__main__":
    main()
