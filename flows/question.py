"""Stage `question`: the domain's documents -> data/<domain>/questions.jsonl, from where `ingest` reads them."""

from prefect import flow

from flows import paths
from flows.rows import RowRun
from raft_tasks.artifacts import atomic_folder, write_json, write_rows
from raft_tasks.config import load_config
from raft_tasks.generation.questions import wrong_passages
from raft_tasks.question import probe_checkers, question_chunk, read_chunks, require_readers, summary


@flow
def question(domain: str) -> None:
    config = load_config()
    settings = config.question
    chunks, unreadable = read_chunks(paths.documents(domain), settings)
    models = {settings.model, *(checker.model for checker in settings.checkers)}
    run = RowRun(f"question@{domain}", settings, config, models)
    with run.map(question_chunk, chunks, len(chunks), "chunks", lambda result: result.failure) as questioned:
        results = list(questioned)
    counts = summary(chunks, results, unreadable)
    probes = wrong_passages([pair for result in results for pair in result.pairs], chunks)
    counts["wrong_passage"] = run.call(probe_checkers, probes) if probes else {}
    print(f"{run.label}: {counts}", flush=True)
    require_readers(counts["wrong_passage"], settings)
    write_rows(paths.questions(domain), (pair for result in results for pair in result.pairs))
    with atomic_folder(paths.question_rejects(domain)) as folder:
        write_rows(folder / "rejects.jsonl", [*unreadable, *(out for result in results for out in result.rejected)])
        write_json(folder / "summary.json", counts)
