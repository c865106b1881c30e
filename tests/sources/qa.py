"""A small domain to ingest, for the tests of this folder."""

import json
from pathlib import Path
from typing import Any

from raft_tasks.config import Chat, Columns, Domain, Hub, Hygiene, Ingest, SplitByColumn, SplitBySource
from raft_tasks.schemas import Example, Reject
from raft_tasks.sources.contamination import BenchmarkIndex
from raft_tasks.sources.ingestion import Ingested, ingest_rows

COLUMNS = {
    "id": None,
    "question": "q",
    "answer": "a",
    "source": None,
    "split": "split",
    "expected": None,
    "details": None,
}
HYGIENE = {"near_duplicates": None, "contamination": None, "language": None, "privacy": "flag"}
BY_COLUMN = SplitByColumn(by="column", sources_may_straddle=False)
STRADDLE = SplitByColumn(by="column", sources_may_straddle=True)
GOOD = [{"q": "How tall is it?", "a": "Nine.", "split": "train"}, {"q": "Who made it?", "a": "Ada.", "split": "test"}]


def domain(
    files: list[str],
    *,
    hub: Hub | None = None,
    chat: Chat | None = None,
    split: SplitByColumn | SplitBySource = BY_COLUMN,
    columns: dict[str, str | None] | None = None,
    **hygiene: Any,
) -> Domain:
    roles = COLUMNS | ({"question": None, "answer": None} if chat else {}) | (columns or {})
    return Domain(
        files=files, hub=hub, columns=Columns(**roles), chat=chat, split=split, hygiene=Hygiene(**HYGIENE | hygiene)
    )


def decided(folder: Path, what: Domain, index: BenchmarkIndex | None = None, least: int = 1) -> Ingested:
    work = folder / "work"
    work.mkdir(exist_ok=True)
    bounds = Ingest(min_characters=least, max_characters=8000, max_rejected=1.0)
    return ingest_rows("numbers", what, bounds, folder, work, index)


def ingest(
    folder: Path, rows: list[dict[str, Any]], index: BenchmarkIndex | None = None, least: int = 1, **options: Any
) -> tuple[list[Example], list[Reject]]:
    """The rows, after two good ones, through a JSON lines file in `folder`."""
    written = [*([] if options.get("chat") else GOOD), *rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    ingested = decided(folder, domain(["rows.jsonl"], **options), index, least)
    found = list(ingested)
    ingested.close()
    return [row for row in found if isinstance(row, Example)], [row for row in found if isinstance(row, Reject)]
