"""Tasks of the stage `fuse`: Eq. 4 on a chunk of rows, and the answers that each method learns."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from raft_tasks import config
from raft_tasks.artifacts import iter_rows
from raft_tasks.control_tokens import CONTROL, break_up
from raft_tasks.errors import InputError
from raft_tasks.evaluation.agreement import compare_with_people, panel_agreement, panel_mean
from raft_tasks.generation.cached_backend import CachedBackend, ModelPool
from raft_tasks.generation.fusing import fuse
from raft_tasks.generation.judges import SCALE, Judge, build_panel
from raft_tasks.generation.thinking import think_first
from raft_tasks.ngrams import words_and_signs
from raft_tasks.schemas import Filtered, Fused, HeldOut, Labelled, Reject, TrainingPair
from raft_tasks.sources.documents import texts
from raft_tasks.sources.files import find_documents, reject
from raft_tasks.sources.privacy import findings


def fuse_chunk(rows: list[Filtered], settings: config.DomainFuse, pool: ModelPool) -> list[Fused]:
    """The rows with their fused answers."""
    panel, judges = _panel(settings, pool)
    return fuse(rows, pool.backend("fuse", settings.model), panel, settings, judges, settings.checks)


def judge_labels(rows: list[Labelled], settings: config.Fuse, pool: ModelPool) -> list[dict[str, float | None]]:
    """Every judge's score of each text that people have scored; None where it abstained."""
    panel, _ = _panel(settings, pool)
    texts = [row.question for row in rows], [row.reference for row in rows], [row.candidate for row in rows]
    columns = {name: [judgement.score for judgement in judge(*texts)] for name, judge in panel.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(len(rows))]


def _panel(settings: config.Fuse, pool: ModelPool) -> tuple[dict[str, Judge], dict[str, CachedBackend]]:
    """The judges, and the backends of those that are models."""
    backends = {judge.model: pool.backend("judge", judge.model) for judge in settings.models}
    encoder = pool.encoder("judge", settings.encoder, settings.revision)
    return build_panel(settings, encoder, pool.backend("judge", "base"), backends), backends


def summarize_judging(
    rows: Iterable[Fused], settings: config.Fuse, labels: list[Labelled], judged: list[dict[str, float | None]]
) -> dict[str, Any]:
    """How the judges agree on all candidates, a text of a row once, and with people on the labelled texts."""
    scores: dict[str, list[float | None]] = {name: [] for name in settings.panel}
    for row in rows:
        texts = {candidate.text: candidate for candidate in row.candidates if candidate.scores or candidate.abstained}
        for candidate in texts.values():
            for name, of_judge in scores.items():
                of_judge.append(candidate.scores.get(name))
    by_judge: dict[str, list[float | None]] = {name: [row[name] for row in judged] for name in settings.panel}
    beside = {**by_judge, "mean of the panel": panel_mean(by_judge)}
    people = [row.score / SCALE for row in labels]
    return {
        "agreement": panel_agreement(scores, settings.stop_at),
        "calibration": compare_with_people(beside, people, settings.stop_at) if labels else None,
    }


def think_chunk(pairs: list[TrainingPair], settings: config.Fuse, pool: ModelPool) -> list[TrainingPair]:
    """The pairs in the modes of `models.base.thinking`: behind the base's own thoughts, too or alone."""
    return think_first(pairs, pool.backend("think", "base"), settings.batch_size, settings.seed)


def failure(row: Fused) -> str | None:
    """Why a row that was to be fused has no fusion at all, if so; its rewrite is then the only candidate."""
    reasons = [candidate.failure for candidate in row.candidates if candidate.round]
    return reasons[0] if reasons and all(reasons) else None


def training_pairs(rows: Iterable[Fused], method: config.Method) -> Iterator[TrainingPair]:
    """What `method` learns of each row: the reference y_i, the filtered rewrite ybar_i or the fused answer y^_i."""
    answer = {"reference": lambda row: row.answer, "rewrite": lambda row: row.chosen, "fused": lambda row: row.fused}
    for row in rows:
        yield TrainingPair(
            id=row.id, question=row.question, answer=answer[method.target](row),
            expected=row.expected if method.mixing else [], history=row.history,
        )  # fmt: skip


def read_documents(folder: Path, privacy: str) -> tuple[list[tuple[str, str]], list[Reject]]:
    """(name, text) of a domain's documents, marks of turns broken up; and those that are left out.

    Raises:
        InputError: there are none, or none is left.
    """
    documents: list[tuple[str, str]] = []
    left_out: list[Reject] = []
    for document in texts(find_documents(folder)):
        if isinstance(document, Reject):
            left_out.append(document)
        elif privacy == "reject" and (private := findings(document[1])):
            reason = f"hygiene.privacy is reject, and it holds: {private[0].rule}"
            left_out.append(Reject(file=document[0], line=1, reason=reason, content="", rule="privacy"))
        else:
            documents.append((document[0], break_up(CONTROL, document[1])))
    if not documents:
        reasons = "; ".join(f"{reject.file}: {reject.reason}" for reject in left_out) or "they are empty"
        raise InputError(f"{folder}: none of the documents can be injected: {reasons}")
    return documents, left_out


def document_pairs(documents: Iterable[tuple[str, str]], injection: config.Injection) -> Iterator[TrainingPair]:
    """The documents as answers, marked as such."""
    for name, text in documents:
        yield TrainingPair(id=name, question=injection.instruction, answer=text, document=True)


def replay_pairs(
    replay: config.Replay,
    domain_pairs: Iterable[TrainingPair],
    held_out: Iterable[HeldOut] = (),
    left_out: list[Reject] | None = None,
) -> Iterator[TrainingPair]:
    """What is replayed, marked as such: rows of files, or the `domain_pairs` once more.

    Args:
        held_out: questions that no row of a file may ask, behind the same history; a row that does so is added to
            `left_out`.

    Raises:
        InputError: naming files that are not there, or the line that is not a row.
    """
    if replay.files == "domain":
        yield from (pair.model_copy(update={"replay": True}) for pair in domain_pairs)
        return
    asked = set(map(_words_asked, held_out))
    for pattern in replay.patterns:
        files = sorted(Path().glob(pattern))
        if not files and replay.files != "production":
            raise InputError(
                f"replay.files: nothing matches {pattern!r}; put JSON lines with id, question and answer there, or set "
                "the method's `replay` to null"
            )
        for file in files:
            for line, row in enumerate(iter_rows(file, TrainingPair), start=1):
                if _words_asked(row) not in asked:
                    yield row.model_copy(update={"replay": True})
                elif left_out is not None:
                    reason = "replay of a question that is held out"
                    left_out.append(reject(str(file), line, reason, row.id, "contamination"))


def _words_asked(row: HeldOut | TrainingPair) -> tuple[tuple[str, ...], ...]:
    """The words and signs of the turns before a question, and of the question; as in `ingest` without system turns."""
    turns = [*(turn["content"] for turn in row.history if turn["role"] != "system"), row.question]
    return tuple(tuple(words_and_signs(turn)) for turn in turns)
