"""Stage `ingest`: files and data sets -> examples/: a split each, rejects and flags; and a summary."""

from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from prefect import flow

from flows import paths
from raft_tasks.artifacts import atomic_folder, iter_rows, row_writer, write_json, write_rows
from raft_tasks.config import load_config
from raft_tasks.ingest import ingest_domain
from raft_tasks.schemas import Example, Flag, HeldOut, Reject, Split

SPLITS = get_args(Split)


@flow
def ingest(domain: str) -> None:
    config = load_config()
    with atomic_folder(paths.examples(domain)) as folder, TemporaryDirectory(dir=folder) as work:
        ingested = ingest_domain(
            domain, config.domains[domain], config.ingest, config.benchmark, paths.BENCHMARK_TASKS, Path(work)
        )
        counts: Counter[str] = Counter()
        rules: dict[str, Counter[str]] = {"rejects": Counter(), "flags": Counter()}
        with closing(ingested), ExitStack() as files:
            write = {
                split: files.enter_context(row_writer(folder / f"{split}.{config.run.rows}", Example))
                for split in SPLITS
            }
            write["rejects"] = files.enter_context(row_writer(folder / "rejects.jsonl", Reject))  # lines, for people
            write["flags"] = files.enter_context(row_writer(folder / "flags.jsonl", Flag))
            for line in ingested.lines():
                write[line.artifact](line.text)
                counts[line.artifact] += 1
                if line.rule is not None:
                    rules[line.artifact][line.rule] += 1
    held_out = (paths.examples(domain) / f"{split}.{config.run.rows}" for split in ("validation", "test"))
    questions = (HeldOut(id=row.id, question=row.question) for path in held_out for row in iter_rows(path, Example))
    write_rows(paths.held_out(domain), questions)
    summary: dict[str, Any] = {
        "rows": sum(counts[name] for name in (*SPLITS, "rejects")),
        **{split: counts[split] for split in SPLITS},
        "rejected": counts["rejects"],
        "rejected_by_rule": dict(sorted(rules["rejects"].items())),
        "flagged_by_rule": dict(sorted(rules["flags"].items())),
        "unread_columns": sorted(ingested.roles.unread),
    }
    write_json(paths.ingest_summary(domain), summary)
    print(f"ingest@{domain}: {summary}", flush=True)
