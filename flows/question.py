"""Stage `question`: the domain's documents -> data/<domain>/questions.jsonl, from where `ingest` reads them."""

from prefect import flow

from flows import paths
from flows.stage import Progress, main
from raft_tasks.artifacts import atomic_folder, read_json, write_json, write_rows
from raft_tasks.generation.backend import build_backend
from raft_tasks.params import load_params
from raft_tasks.question import chunked, question_chunk, summary
from raft_tasks.schemas import Questioned


@flow
def question(domain: str) -> None:
    params = load_params()
    settings = params.question
    found, unreadable = chunked(paths.documents(domain), settings)
    roles = dict.fromkeys([settings.model, *(checker.model for checker in settings.checkers)])
    backends = {role: build_backend(params.models[role], read_json(paths.model_identity(role))) for role in roles}
    progress = Progress(f"question@{domain}", len(found), "chunks")
    done: list[Questioned] = []
    for start in range(0, len(found), settings.chunk_rows):
        portion = found[start : start + settings.chunk_rows]
        done += question_chunk(portion, settings, backends[settings.model], backends)
        progress(len(done))
    counts = summary(found, done, unreadable)
    write_rows(paths.questions(domain), (pair for one in done for pair in one.pairs))
    with atomic_folder(paths.question_rejects(domain)) as folder:
        write_rows(folder / "rejects.jsonl", [*unreadable, *(out for one in done for out in one.rejected)])
        write_json(folder / "summary.json", counts)
    print(f"question@{domain}: {counts}", flush=True)


if __name__ == "__main__":
    main(question, str)
