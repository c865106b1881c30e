"""Stage `question`: the domain's documents -> data/<domain>/questions.jsonl, from where `ingest` reads them."""

from contextlib import closing

from prefect import flow

from flows import paths
from flows.rows import ProgressReporter, enforce_failure_rate, map_chunks, open_pool
from raft_tasks.artifacts import atomic_folder, write_json, write_rows
from raft_tasks.config import load_config
from raft_tasks.question import question_chunk, read_chunks, summary


@flow
def question(domain: str) -> None:
    config = load_config()
    settings = config.question
    chunks, unreadable = read_chunks(paths.documents(domain), settings)
    label = f"question@{domain}"
    models = {settings.model, *(checker.model for checker in settings.checkers)}
    pool = open_pool("question", settings.budget, config, models)
    progress = ProgressReporter(label, len(chunks), pool.calls, "chunks")
    questioned = map_chunks(question_chunk, chunks, settings, pool, config.resources.chunks, progress)
    with closing(questioned) as rows:
        results = list(
            enforce_failure_rate(label, rows, len(chunks), settings.max_failed, lambda result: result.failure)
        )
    counts = summary(chunks, results, unreadable)
    write_rows(paths.questions(domain), (pair for result in results for pair in result.pairs))
    with atomic_folder(paths.question_rejects(domain)) as folder:
        write_rows(folder / "rejects.jsonl", [*unreadable, *(out for result in results for out in result.rejected)])
        write_json(folder / "summary.json", counts)
    print(f"{label}: {counts}", flush=True)
