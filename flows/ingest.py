"""Stage `ingest`: the domain's files -> examples/{train,validation,test}.jsonl, rejects.jsonl, summary.json."""

from collections import Counter
from typing import get_args

from prefect import flow

from flows import paths
from flows.stage import main
from raft_tasks.artifacts import atomic_folder, write_json, write_rows
from raft_tasks.ingest import ingest_domain
from raft_tasks.params import load_params
from raft_tasks.schemas import Split


@flow
def ingest(domain: str) -> None:
    params = load_params()
    examples, rejects = ingest_domain(domain, params.domains[domain], params.ingest)
    with atomic_folder(paths.examples(domain)) as folder:
        for split in get_args(Split):
            write_rows(folder / f"{split}.jsonl", [row for row in examples if row.split == split])
        write_rows(folder / "rejects.jsonl", rejects)
        counts = Counter(row.split for row in examples)
        summary: dict[str, int] = {
            "rows": len(examples) + len(rejects),
            "rejected": len(rejects),
            **dict(sorted(counts.items())),
        }
        write_json(folder / "summary.json", summary)
    print(f"ingest@{domain}: {summary}", flush=True)


if __name__ == "__main__":
    main(ingest, str)
