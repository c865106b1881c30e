"""What a verdict rests on, as one JSON file from which it can be judged again without any model.

{"verdict": {"promoted": true, "reason": ..., "checks": [...]},
 "evidence": {"domain": "archive", "rules": {...}, "inputs": {"candidate": {"model.safetensors": <SHA-256>, ...}, ...},
              "candidate": {"items": {"domain": [{"id": "1", "metrics": {"acc": 1.0}, ...}, ...]}, ...}, ...}}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from raft_tasks.artifacts import digest_path, read_json, write_json
from raft_tasks.config import Model, PromotionGate
from raft_tasks.errors import InputError
from raft_tasks.evaluation.gate import Measured, Verdict, check_candidate
from raft_tasks.gguf import model_folder

NAME = "gate.json"  # in a released folder
TEXTS = ("prompt", "answer", "question", "reference")  # of an item; no rule reads them, nor a thought
WRITTEN_LATER = {"README.md", NAME}  # in a released folder; what a model does depends on neither


@dataclass(frozen=True)
class Evidence:
    """The rules and all that is measured; `inputs` are SHA-256 digests, by what they are of."""

    domain: str
    rules: PromotionGate
    candidate: Measured
    base: Measured
    champion: Measured | None
    fidelity: float | None  # share of the refined training answers that keep every fact of their reference
    inputs: Mapping[str, Mapping[str, str]]
    repeat: Measured | None = None  # the candidate's second measurement

    def judge(self) -> Verdict:
        return check_candidate(
            self.rules, self.domain, self.candidate, self.base, self.champion, self.fidelity, self.repeat
        )


def digest_model(model: Model) -> dict[str, str]:
    """{file: SHA-256 (hex)} of a folder, without the model card; of the hub {"id": ..., "revision": ...}."""
    folder = model_folder(model.path)
    if not folder.is_dir():
        return {"id": model.path, "revision": str(model.revision)}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in WRITTEN_LATER)
    return {str(path.relative_to(folder)): digest_path(path) for path in files}


def write_evidence(path: Path, evidence: Evidence, verdict: Verdict) -> None:
    """Write both to `path`, the items without their texts."""
    content = TypeAdapter(Evidence).dump_python(evidence, mode="json")
    for model in filter(None, (content[name] for name in ("candidate", "base", "champion", "repeat"))):
        for row in (row for rows in model["items"].values() for row in rows):
            row.update(dict.fromkeys(TEXTS, ""))
            row.pop("thought", None)  # rows leave out an empty one
    result = {"promoted": verdict.promoted, "reason": verdict.reason, "checks": verdict.rows()}
    write_json(path, {"verdict": result, "evidence": content})


def replay(path: Path, folder: Path | None = None) -> tuple[Evidence, Verdict]:
    """Judge again what `write_evidence` wrote.

    Args:
        folder: a model that must be the candidate.

    Raises:
        InputError: no such file, another verdict than the file's, or a `folder` with other files than the candidate's.
    """
    try:
        content = read_json(path)
        evidence = TypeAdapter(Evidence).validate_python(content["evidence"])
        checks = content["verdict"]["checks"]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{path}: expected evidence as `raft gate` writes it: {error}") from error
    verdict = evidence.judge()
    if verdict.rows() != checks:
        changed = [now["rule"] for now, then in zip(verdict.rows(), checks, strict=False) if now != then]
        raise InputError(
            f"{path}: its figures do not give its verdict (rules: {', '.join(changed) or 'others than now'}); was it "
            "changed, or written by another version of the gate? Measure again"
        )
    if folder is not None:
        check_files(evidence, folder)
    return evidence, verdict


def check_files(evidence: Evidence, folder: Path) -> None:
    """
    Raises:
        InputError: naming the files of `folder` that are not those that were judged.
    """
    now, then = digest_model(Model(path=str(folder))), evidence.inputs["candidate"]
    changed = sorted(name for name in {*now, *then} if now.get(name) != then.get(name))
    if changed:
        raise InputError(
            f"{folder}: not the model that was judged: {', '.join(changed)} differ from the evidence's digests. Fetch "
            "the released folder again, or judge this one"
        )
