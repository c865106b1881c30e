"""Stage `question`: the domain's documents -> data/<domain>/questions.jsonl, from where `ingest` reads them."""

from contextlib import closing

from prefect import flow

from flows import paths
from flows.rows import few_failed, new_calls, through
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
    label = f"question@{domain}"
    questioned = through(
        question_chunk,
        found,
        settings,
        {role: params.models[role] for role in roles},
        {role: read_json(paths.model_identity(role)) for role in roles},
        label=label,
        total=len(found),
        chunk_rows=settings.chunk_rows,
        chunks=params.resources.chunks,
        calls=new_calls("question", settings.budget),
        unit="chunks",
    )
    with closing(questioned) as rows:
        done = list(few_failed(label, rows, len(found), settings.max_failed, lambda one: one.failure))
    counts = summary(found, done, unreadable)
    write_rows(paths.questions(domain), (pair for one in done for pair in one.pairs))
    with atomic_folder(paths.question_rejects(domain)) as folder:
        write_rows(folder / "rejects.jsonl", [*unreadable, *(out for one in done for out in one.rejected)])
        write_json(folder / "summary.json", counts)
    print(f"{label}: {counts}", flush=True)


if __name__ == "__main__":
    main(question, str)
