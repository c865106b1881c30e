"""Stage `question`: the domain's documents -> data/<domain>/questions.jsonl, from where `ingest` reads them."""

from contextlib import closing

from prefect import flow

from flows import paths
from flows.rows import new_calls, through
from flows.stage import main
from raft_tasks.artifacts import atomic_folder, read_json, write_json, write_rows
from raft_tasks.params import load_params
from raft_tasks.question import chunked, question_chunk, summary


@flow
def question(domain: str) -> None:
    params = load_params()
    settings = params.question
    found, unreadable = chunked(paths.documents(domain), settings)
    roles = {settings.model, *(checker.model for checker in settings.checkers)}
    questioned = through(
        question_chunk,
        found,
        settings,
        {role: params.models[role] for role in roles},
        {role: read_json(paths.model_identity(role)) for role in roles},
        label=f"question@{domain}",
        total=len(found),
        chunk_rows=settings.chunk_rows,
        chunks=params.resources.chunks,
        calls=new_calls("question", settings.budget),
        unit="chunks",
    )
    with closing(questioned) as rows:
        done = list(rows)
    counts = summary(found, done, unreadable)
    write_rows(paths.questions(domain), (pair for one in done for pair in one.pairs))
    with atomic_folder(paths.question_rejects(domain)) as folder:
        write_rows(folder / "rejects.jsonl", [*unreadable, *(out for one in done for out in one.rejected)])
        write_json(folder / "summary.json", counts)
    print(f"question@{domain}: {counts}", flush=True)


if __name__ == "__main__":
    main(question, str)
