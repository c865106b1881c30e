"""Stage `ingest`: files and data sets -> examples/: a split each, rejects and flags; and a summary."""

from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from prefect import flow

from flows import paths
from flows.stage import main
from raft_tasks.artifacts import atomic_folder, row_writer, write_json
from raft_tasks.ingest import ingest_domain
from raft_tasks.params import load_params
from raft_tasks.schemas import Example, Flag, Reject, Split

SPLITS = get_args(Split)


@flow
def ingest(domain: str) -> None:
    params = load_params()
    with atomic_folder(paths.examples(domain)) as folder, TemporaryDirectory(dir=folder) as work:
        ingested = ingest_domain(
            domain, params.domains[domain], params.ingest, params.benchmark.tasks, paths.BENCHMARK_TASKS, Path(work)
        )
        counts: Counter[str] = Counter()
        rules: dict[str, Counter[str]] = {"rejects": Counter(), "flags": Counter()}
        with closing(ingested), ExitStack() as files:
            write = {
                split: files.enter_context(row_writer(folder / f"{split}.{params.resources.rows}", Example))
                for split in SPLITS
            }
            write["rejects"] = files.enter_context(row_writer(folder / "rejects.jsonl", Reject))  # lines, for people
            write["flags"] = files.enter_context(row_writer(folder / "flags.jsonl", Flag))
            for line in ingested.lines():
                write[line.artifact](line.text)
                counts[line.artifact] += 1
                if line.rule is not None:
                    rules[line.artifact][line.rule] += 1
    summary: dict[str, Any] = {
        "rows": sum(counts[name] for name in (*SPLITS, "rejects")),
        **{split: counts[split] for split in SPLITS},
        "rejected": counts["rejects"],
        "rejected_by_rule": dict(sorted(rules["rejects"].items())),
        "flagged_by_rule": dict(sorted(rules["flags"].items())),
    }
    write_json(paths.ingest_summary(domain), summary)
    print(f"ingest@{domain}: {summary}", flush=True)


if __name__ == "__main__":
    main(ingest, str)
