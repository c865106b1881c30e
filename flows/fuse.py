"""Stage `fuse` (Eq. 4): reference and rewrite become one answer; then what each method learns is written down."""

from collections.abc import Iterable, Sequence
from itertools import chain

from prefect import flow

from flows import paths
from flows.rows import RowRun
from raft_tasks.artifacts import atomic_folder, count_rows, iter_rows, read_rows, write_json, write_rows
from raft_tasks.config import DomainFuse, load_config
from raft_tasks.fuse import (
    document_pairs,
    failure,
    fuse_chunk,
    judge_labels,
    read_documents,
    replay_pairs,
    summarize_judging,
    think_chunk,
    training_pairs,
)
from raft_tasks.schemas import Filtered, Fused, HeldOut, Labelled, Reject, TrainingPair
from raft_tasks.thoughts import count_thoughts


@flow
def fuse(domain: str) -> None:
    config = load_config()
    settings = DomainFuse(**dict(config.fuse), checks=config.domains[domain].checks)
    filtered = paths.filtered(domain, config.run.rows)
    fused_file = paths.fused(domain, config.run.rows)
    models = {settings.model, "base", *(judge.model for judge in settings.models)}
    run = RowRun(f"fuse@{domain}", settings, config, models)
    with run.map(fuse_chunk, iter_rows(filtered, Filtered), count_rows(filtered), failure=failure) as fused:
        write_rows(fused_file, fused)
    labels = read_rows(paths.labels(settings.calibration), Labelled) if settings.calibration else []
    scores = run.call(judge_labels, labels) if labels else []
    summary = summarize_judging(iter_rows(fused_file, Fused), settings, labels, scores)
    write_json(paths.judging(domain), summary)
    for name, counts in summary["agreement"]["judges"].items():
        if counts["abstained"]:
            texts = summary["agreement"]["texts"]
            print(f"{run.label}: judge {name} abstained from {counts['abstained']} of {texts}", flush=True)
    documents: list[tuple[str, str]] = []
    left_out: list[Reject] = []
    if any(config.methods[name].injection for name in config.run.methods):
        documents, left_out = read_documents(paths.documents(domain), config.domains[domain].hygiene.privacy)
        for reject in left_out:
            print(f"{run.label}: not injected: {reject.file}: {reject.reason}", flush=True)
    with atomic_folder(paths.training(domain)) as folder:
        for name in config.run.methods:
            method = config.methods[name]
            pairs, domain_pairs = (training_pairs(iter_rows(fused_file, Fused), method) for _ in range(2))
            held_out = iter_rows(paths.held_out(domain), HeldOut)
            replayed = replay_pairs(method.replay, domain_pairs, held_out, left_out) if method.replay else ()
            learned: Iterable[TrainingPair] = chain(pairs, replayed)
            if config.base.thinking != "off":
                alone = list(learned)
                at_most = len(alone) * (2 if config.base.thinking == "both" else 1)
                with run.map(think_chunk, alone, at_most, f"rows of {name}") as thoughtful:
                    learned = list(thoughtful)
                report_thoughts(f"{run.label}, {name}", learned)
            injected = document_pairs(documents, method.injection) if method.injection else ()
            write_rows(folder / f"{name}.{config.run.rows}", chain(learned, injected))
        left_out = list(dict.fromkeys(left_out))  # methods that replay the same files leave out the same rows
        if left_out:
            write_rows(folder / "rejects.jsonl", left_out)
            print(f"{run.label}: left out: {len(left_out)} rows or documents, see {paths.training(domain)}", flush=True)


def report_thoughts(label: str, pairs: Sequence[TrainingPair]) -> None:
    thoughts, cut = count_thoughts(pair.thought for pair in pairs)
    print(
        f"{label}: {thoughts} of {len(pairs)} answers are learned behind a thought of the base; {cut} thoughts "
        "met models.base.thought_tokens and end there",
        flush=True,
    )
