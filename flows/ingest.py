"""Stage `ingest`: files and data sets -> examples/: a split each, rejects and flags; and a summary."""

import json
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast, get_args

from prefect import flow

from flows import paths
from raft_tasks.artifacts import atomic_folder, iter_rows, row_writer, write_json, write_rows
from raft_tasks.config import Train, load_config
from raft_tasks.ingest import draw_ids, ingest_domain
from raft_tasks.schemas import Example, Flag, HeldOut, Reject, Split
from raft_tasks.sources.files import find_files

SPLITS = get_args(Split)


@flow
def ingest(domain: str) -> None:
    config = load_config()
    with atomic_folder(paths.examples(domain)) as folder, TemporaryDirectory(dir=folder) as work:
        ingested = ingest_domain(domain, config, paths.BENCHMARK_TASKS, Path(work))
        counts: Counter[str] = Counter()
        rules: dict[str, Counter[str]] = {"rejects": Counter(), "flags": Counter()}
        with closing(ingested), ExitStack() as files:
            drawn = draw_ids((row for row in ingested if isinstance(row, Example)), config.domains[domain].limit)
            write = {
                split: files.enter_context(row_writer(folder / f"{split}.{config.run.rows}", Example))
                for split in SPLITS
            }
            write["rejects"] = files.enter_context(row_writer(folder / "rejects.jsonl", Reject))  # lines, for people
            write["flags"] = files.enter_context(row_writer(folder / "flags.jsonl", Flag))
            left_out = False
            for line in ingested.lines():
                if line.artifact in SPLITS:
                    kept = drawn.get(cast("Split", line.artifact))
                    left_out = kept is not None and json.loads(line.text)["id"] not in kept
                    counts["left_out"] += left_out
                if left_out and line.artifact != "rejects":  # with its flags
                    continue
                write[line.artifact](line.text)
                counts[line.artifact] += 1
                if line.rule is not None:
                    rules[line.artifact][line.rule] += 1
    held_out = (paths.examples(domain) / f"{split}.{config.run.rows}" for split in ("validation", "test"))
    write_rows(paths.curve_rows(domain), curve_rows(paths.split(domain, "validation", config.run.rows), config.train))
    questions = (
        HeldOut(id=row.id, question=row.question, history=row.history)
        for path in held_out
        for row in iter_rows(path, Example)
    )
    write_rows(paths.held_out(domain), questions)
    summary: dict[str, Any] = {
        "rows": sum(counts[name] for name in (*SPLITS, "left_out", "rejects")),
        **{split: counts[split] for split in SPLITS},
        "left_out": counts["left_out"],  # by domains.NAME.limit
        "rejected": counts["rejects"],
        "rejected_by_rule": dict(sorted(rules["rejects"].items())),
        "flagged_by_rule": dict(sorted(rules["flags"].items())),
        "unread_columns": sorted(ingested.roles.unread),
        "unread_files": unread_files(Path("data") / domain, config.domains[domain].files),
    }
    write_json(paths.ingest_summary(domain), summary)
    print(f"ingest@{domain}: {summary}", flush=True)


def curve_rows(validation: Path, train: Train) -> list[Example]:
    """The validation rows on which the forgetting curve is measured; none without one."""
    if train.curve is None:
        return []
    drawn = draw_ids(iter_rows(validation, Example), {"validation": train.curve.rows})["validation"]
    return [row for row in iter_rows(validation, Example) if row.id in drawn]


def unread_files(folder: Path, patterns: list[str]) -> list[str]:
    """Names of the files in a domain's folder that no pattern reads, READMEs and hidden files aside."""
    read = set(find_files(patterns, Path())) if patterns else set()
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path not in read)
    return [str(path.relative_to(folder)) for path in files if not path.name.startswith((".", "README"))]
