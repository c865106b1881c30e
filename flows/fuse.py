"""Stage `fuse` (Eq. 4): reference and rewrite become one answer; then what each method learns is written down."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import chain

from prefect import flow

from flows import paths
from flows.rows import ProgressReporter, enforce_failure_rate, map_chunks, open_pool
from flows.task_cache import call_cached
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
from raft_tasks.schemas import Filtered, Fused, Labelled, TrainingPair
from raft_tasks.thoughts import count_thoughts


@flow
def fuse(domain: str) -> None:
    config = load_config()
    settings = DomainFuse(**dict(config.fuse), checks=config.domains[domain].checks)
    filtered = paths.filtered(domain, config.run.rows)
    total, label = count_rows(filtered), f"fuse@{domain}"
    pool = open_pool(
        "fuse", settings.budget, config, {settings.model, "base", *(judge.model for judge in settings.models)}
    )
    progress = ProgressReporter(label, total, pool.calls)
    rows = map_chunks(fuse_chunk, iter_rows(filtered, Filtered), settings, pool, config.resources.chunks, progress)
    with closing(rows) as fused:
        kept = enforce_failure_rate(label, fused, total, settings.max_failed, failure)
        write_rows(paths.fused(domain, config.run.rows), kept)
    labels = read_rows(paths.labels(settings.calibration), Labelled) if settings.calibration else []
    scores = call_cached(judge_labels, labels, settings, pool, config.resources.chunks) if labels else []
    fused_file = paths.fused(domain, config.run.rows)
    summary = summarize_judging(iter_rows(fused_file, Fused), settings, labels, scores)
    write_json(paths.judging(domain), summary)
    for name, counts in summary["agreement"]["judges"].items():
        if counts["abstained"]:
            texts = summary["agreement"]["texts"]
            print(f"{label}: judge {name} abstained from {counts['abstained']} of {texts}", flush=True)
    documents: list[tuple[str, str]] = []
    if any(config.methods[name].injection for name in config.run.methods):
        documents, left_out = read_documents(paths.documents(domain), config.domains[domain].hygiene.privacy)
        for reason in left_out:
            print(f"{label}: not injected: {reason}", flush=True)
    with atomic_folder(paths.training(domain)) as folder:
        for name in config.run.methods:
            method = config.methods[name]
            pairs, domain_pairs = (training_pairs(iter_rows(fused_file, Fused), method) for _ in range(2))
            replayed = replay_pairs(method.replay, domain_pairs) if method.replay else ()
            learned: Iterable[TrainingPair] = chain(pairs, replayed)
            if config.base.thinking != "off":
                alone = list(learned)
                at_most = len(alone) * (2 if config.base.thinking == "both" else 1)
                progress = ProgressReporter(label, at_most, pool.calls, f"rows of {name}")
                learned = list(map_chunks(think_chunk, alone, settings, pool, config.resources.chunks, progress))
                report_thoughts(f"{label}, {name}", learned)
            injected = document_pairs(documents, method.injection) if method.injection else ()
            write_rows(folder / f"{name}.{config.run.rows}", chain(learned, injected))


def report_thoughts(label: str, pairs: Sequence[TrainingPair]) -> None:
    thoughts, cut = count_thoughts(pair.thought for pair in pairs)
    print(
        f"{label}: {thoughts} of {len(pairs)} answers are learned behind a thought of the base; {cut} thoughts "
        "met models.base.thought_tokens and end there",
        flush=True,
    )
