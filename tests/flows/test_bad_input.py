"""Bad input: a message that names file, line or key, an exit code that is not zero, and nothing half-written."""

import json

import pytest
import yaml
from project_copies import copy_project

from flows.pipeline import failure_reason

GOOD = {
    "id": "a",
    "question": "q",
    "answer": "oak",
    "source": "s",
    "split": "train",
    "expected": ["oak"],
    "details": [],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("project"), {})


@pytest.fixture
def stage(project, raft):
    """Runs a stage with given data and params, and puts both back; returns its error message."""
    data, config = project / "data" / "archive" / "pairs.jsonl", project / "params.yaml"
    before = data.read_bytes(), config.read_text()

    def run(*command, rows=None, change=None):
        if rows is not None:
            data.write_bytes(rows)
        if change is not None:
            values = yaml.safe_load(config.read_text())
            change(values)
            config.write_text(yaml.safe_dump(values))
        result = raft(project, *command)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        artifacts = project / "artifacts"
        written = {path.relative_to(artifacts).parts[0] for path in artifacts.rglob("*") if path.is_file()}
        assert written <= {"resolved", "models"}  # the settings that hold, and no stage's output
        return result.stderr

    yield run
    data.write_bytes(before[0])
    config.write_text(before[1])


def lines(*rows):
    return "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (lines(GOOD, {**GOOD, "id": "b", "answer": " "}), ["data/archive/pairs.jsonl:2", "answer"]),
        (lines(GOOD, '{"id": "b", \n'), ["data/archive/pairs.jsonl:2", "JSON"]),
        (lines(GOOD, {**GOOD, "question": "other"}), ["data/archive/pairs.jsonl:2", "id 'a'", "pairs.jsonl:1"]),
        (lines({k: v for k, v in GOOD.items() if k != "source"}), ["data/archive/pairs.jsonl", "'source'"]),
        (lines(GOOD)[:-2] + b"\xff\xfe}\n", ["data/archive/pairs.jsonl", "UTF-8"]),
    ],
    ids=["empty answer", "broken JSON", "duplicate id", "missing column", "wrong encoding"],
)
def test_bad_rows(stage, rows, expected):
    message = stage("stage", "ingest", "archive", rows=rows)
    assert [part for part in expected if part not in message] == [], message


def test_bad_params(stage):
    def change(values):
        values["train"]["epochs"] = "three"
        values["tarin"] = {}

    message = stage("stage", "ingest", "archive", change=change)
    assert "train.epochs" in message
    assert "'three'" in message
    assert "tarin" in message


def test_the_pipeline_checks_params_before_it_starts_anything(stage):
    message = stage("run", change=lambda values: values["train"].update(epochs=0))
    assert message.startswith("error: params.yaml has 1 problem(s)")
    assert "train.epochs" in message


def test_a_missing_model_folder(stage):
    message = stage("resolve", change=lambda values: values["models"]["base"].update(path="models/none"))
    assert "models.base.path: got 'models/none'" in message


def test_an_unpinned_hub_model(stage):
    message = stage("resolve", change=lambda values: values["models"]["base"].update(path="owner/name"))
    assert "models.base.revision: got None" in message


def test_a_failed_stage_is_summed_up_by_its_error_and_not_by_the_log_before_it():
    log = [
        "Traceback (most recent call last):",
        "  File ...",
        "error: ingest archive: 3 of 588 rows",
        "  a.jsonl:1: b",
    ]
    assert failure_reason([*log, "ERROR: failed to reproduce 'ingest@archive'"]) == "\n".join(log[2:])
    assert failure_reason(log[:2]) == "the end of its output:\n" + "\n".join(log[:2])
