"""What each stage depends on beside its data: exactly what it uses."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from project_copies import copy_project

from flows import paths, resolve
from raft_tasks.config import load_config, parse_config
from raft_tasks.errors import InputError, OperationalError
from raft_tasks.file_digests import FileDigests
from raft_tasks.models import identify


def files_of(config, tmp_path):
    with FileDigests(tmp_path / "digests.json") as digests:
        identities = {role: identify(role, model, digests) for role, model in config.models.items()}
        return resolve.resolved_files(config, identities, digests)


@pytest.fixture
def changed(tmp_path):
    """A function: the files that differ once `section.key = value` stands in params.yaml."""
    before = files_of(load_config(), tmp_path)

    def of(key, value):
        document = json.loads(json.dumps(yaml.safe_load(Path("params.yaml").read_text())))  # aliases are copies
        *sections, last = key.split(".")
        section = document
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
        after = files_of(parse_config(document), tmp_path)
        return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}

    return of


METHODS = ("sft", "fused_sft", "raft", "fused_sft_anchored")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("semantic_filter.tau", 0.5, {"semantic_filter"}),
        ("rewrite.temperature", 0.1, {"rewrite"}),
        ("train.learning_rate", 1e-5, {f"distill-{method}" for method in METHODS}),
        ("train.max_length", 200, {"ingest-archive", *(f"distill-{method}" for method in METHODS)}),
        ("methods.raft.target", "rewrite", {"distill-raft", "fuse"}),
        ("methods.raft.merge", {"kind": "prune", "keep": 0.1}, {"benchmark-raft"}),
        (
            "benchmark.max_new_tokens",
            41,
            {"ingest-archive", "benchmark", *(f"benchmark-{method}" for method in METHODS)},
        ),
        ("anchors.generated.count", 300, {"anchors"}),
        ("report.flips", 10, {"report"}),
        (
            "run.rows",
            "parquet",
            {"ingest-archive", "report"},
        ),  # `ingest` writes the first rows, and others depend on those
        ("domains.archive.hygiene.privacy", "reject", {"ingest-archive"}),
        ("resources.processes", 1, set()),
        ("gate.general_margin", 0.1, set()),
        ("domains.ledger.hygiene.privacy", "reject", set()),  # not in run.domains
        ("methods.dft.token_weighting", "eaft", set()),  # not in run.methods
    ],
)
def test_a_setting_concerns_the_stages_that_use_it(changed, key, value, expected):
    assert changed(key, value) == expected


def test_where_a_model_folder_lies_does_not_matter(changed, tmp_path):
    moved = shutil.copytree(load_config().base.path, tmp_path / "elsewhere")
    assert changed("models.base.path", str(moved)) == set()
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert {"ingest-archive", "rewrite", "distill-sft", "benchmark"} <= changed("models.base.path", str(moved))


def test_a_prompt_template_concerns_its_stage_by_its_text(changed, monkeypatch):
    text = resolve.template_text
    monkeypatch.setattr(resolve, "template_text", lambda name: text(name) + ("!" if name == "teacher.jinja" else ""))
    assert changed("report.flips", load_config().report.flips) == {
        "distill-raft", "analyse-raft", "ingest-archive",  # what the teacher sees must fit
        "fuse",  # its judge of likelihood shows the reference
    }  # fmt: skip


def test_the_teachers_template_concerns_no_fusion_without_a_judge_of_likelihood():
    settings = load_config().fuse
    assert "teacher.jinja" in resolve.template_digests(settings)
    assert "teacher.jinja" not in resolve.template_digests(settings.model_copy(update={"judges": ["fidelity"]}))


def test_one_more_method_concerns_the_stages_that_write_a_file_for_it(changed):
    """Also where it has no anchors: `distill` reads which ones it has."""
    of_the_method = {f"{stage}-on_policy" for stage in ("analyse", "benchmark", "distill")}
    assert changed("run.methods", [*METHODS, "on_policy"]) == {
        *("anchors", "fuse", "ingest-archive", "judge", "report"),
        *of_the_method,
    }


def test_a_benchmark_task_concerns_the_stages_that_read_it(changed, monkeypatch, tmp_path):
    tasks = shutil.copytree(paths.BENCHMARK_TASKS, tmp_path / "tasks")
    monkeypatch.setattr(paths, "BENCHMARK_TASKS", tasks)
    same = load_config().report.flips
    (tasks / "pocket_recall" / "README.md").write_text("other words")
    assert changed("report.flips", same) == set()
    (tasks / "ms_bench" / "sample.py").write_text("x = 1")  # not among benchmark.tasks
    assert changed("report.flips", same) == set()
    (tasks / "pocket_recall" / "items.jsonl").write_text("{}")
    assert changed("report.flips", same) == {"anchors", "benchmark", *(f"benchmark-{method}" for method in METHODS)}


def test_another_benchmark_concerns_what_must_not_repeat_its_items(changed):
    tasks = [*load_config().benchmark.tasks, "hellaswag"]
    scored = {"benchmark", *(f"benchmark-{method}" for method in METHODS)}
    assert changed("benchmark.tasks", tasks) == {"anchors", *scored}  # the archive's rows are not compared with items
    assert changed("benchmark.data", {"Rowan/hellaswag": {"revision": "0" * 40}}) == {"anchors", *scored}


def test_another_benchmark_concerns_rows_that_must_not_repeat_its_items(tmp_path):
    def ingest(tasks):
        document = json.loads(json.dumps(yaml.safe_load(Path("params.yaml").read_text())))
        document["domains"]["archive"]["hygiene"] = {"contamination": 0.5}
        document["benchmark"] = {"tasks": tasks, "validation_tasks": ["pocket_recall_validation"]}
        return files_of(parse_config(document), tmp_path)["ingest-archive"]

    assert ingest(["pocket_recall"]) != ingest(["pocket_recall", "hellaswag"])


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("semantic_filter.encoder", {"semantic_filter", "anchors"}),
        ("fuse.encoder", {"fuse"}),
        ("methods.raft.distillation.teacher_adapter", {"distill-raft"}),
    ],
)
def test_a_folder_where_a_hub_id_could_stand_counts_by_its_content(changed, tmp_path, key, stages):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "weights").write_text("old")
    by_name = changed(key, str(folder))
    assert stages <= by_name
    document = yaml.safe_load(Path("params.yaml").read_text())
    *sections, last = key.split(".")
    section = document
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = str(folder)
    before = files_of(parse_config(document), tmp_path)
    (folder / "weights").write_text("new")
    after = files_of(parse_config(document), tmp_path)
    assert {name for name in before if before[name] != after[name]} == stages


def test_documents_concern_methods_that_inject_and_no_other(tmp_path, monkeypatch):
    """Through `fuse`, which writes what each method learns: the other methods' rows stay as they are."""
    document = yaml.safe_load(Path("params.yaml").read_text())
    plain = files_of(parse_config(document), tmp_path)
    assert "injection" not in json.dumps([plain[f"distill-{method}"] for method in METHODS])
    assert "documents" not in plain["fuse"]["methods"]["raft"]
    document["run"] |= {"methods": [*METHODS, "raft_injected"]}
    config = parse_config(document)
    folder = tmp_path / "documents" / "archive"
    monkeypatch.setattr(paths, "documents", lambda domain: folder)
    with pytest.raises(InputError, match="archive holds no documents"):
        files_of(config, tmp_path)
    folder.mkdir(parents=True)
    (folder / "a.md").write_text("one")
    before = files_of(config, tmp_path)
    assert {name for name in plain if before[name] != plain[name]} == {"anchors", "fuse", "judge", "report"}
    assert before["distill-raft_injected"]["method"]["injection"]["epochs"] == 3
    (folder / "a.md").write_text("two")
    after = files_of(config, tmp_path)
    assert {name for name in before if after[name] != before[name]} == {"fuse"}
    rows = {name: (before["fuse"]["methods"][name], after["fuse"]["methods"][name]) for name in config.run.methods}
    assert [name for name, (old, new) in rows.items() if old != new] == ["raft_injected"]


def test_of_a_harvest_counts_what_decides_on_its_documents(tmp_path, monkeypatch):
    """They are written after `resolve`, so their bytes would be those of the run before."""
    document = yaml.safe_load(Path("params.yaml").read_text())
    document["run"] |= {"methods": ["raft_injected"], "harvest": ["archive"], "documents": ["archive"]}
    hub = {"id": "a/b", "revision": "0" * 40, "limit": 5}
    document["harvest"] = {"archive": [{"hub": hub, "text": "text"}]}
    folder = tmp_path / "documents" / "archive"
    monkeypatch.setattr(paths, "documents", lambda domain: folder)
    before = files_of(parse_config(document), tmp_path)["fuse"]
    folder.mkdir(parents=True)
    assert files_of(parse_config(document), tmp_path)["fuse"] == before
    paths.harvested("archive").write_bytes(b"rows")
    assert files_of(parse_config(document), tmp_path)["fuse"] == before
    hub["limit"] = 6
    assert files_of(parse_config(document), tmp_path)["fuse"] != before
    hub["limit"] = 5
    (folder / "a.md").write_text("one of one's own")
    assert files_of(parse_config(document), tmp_path)["fuse"] != before


def test_a_file_that_is_not_there_is_named(changed):
    with pytest.raises(InputError, match=r"data/calibration/none\.jsonl, which is not there"):
        changed("fuse.calibration", "none.jsonl")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """What is in force, written down; as if DVC ran the command that wrote it."""
    for name in ("RESOLVED", "MODELS"):
        monkeypatch.setattr(paths, name, tmp_path / name)
    monkeypatch.setattr(paths, "FILE_DIGESTS", tmp_path / "digests.json")
    monkeypatch.setenv(resolve.DVC_STAGE, "resolve")
    resolve.resolve(load_config())
    return yaml.safe_load(Path("params.yaml").read_text())


@pytest.mark.parametrize(
    ("section", "values", "stopped"),
    [
        ("domains", {"archive": {"split": {"test": 0.5}}}, {"ingest"}),
        ("train", {"learning_rate": 1e-5}, {"distill"}),
        ("benchmark", {"max_new_tokens": 41}, {"ingest", "benchmark", "benchmark_base", "benchmark_champion"}),
        ("run", {"methods": ["sft"]}, {"ingest", "distill", "benchmark"}),
        ("resources", {"processes": 1}, set()),
    ],
)
def test_a_stage_of_dvc_runs_with_what_was_written_down_or_not_at_all(written, section, values, stopped):
    stages = {
        "ingest": ("ingest", "archive"),
        "distill": ("distill", "archive", "raft"),
        "benchmark": ("benchmark", "archive", "raft"),
        "benchmark_base": ("benchmark", "archive"),
        "benchmark_champion": ("benchmark", "archive", "champion"),
        "rewrite": ("rewrite", "archive"),
    }
    written[section] = written.get(section, {}) | values
    edited = parse_config(written)

    def stops(arguments):
        resolve.check_unchanged(load_config(), *arguments)
        try:
            resolve.check_unchanged(edited, *arguments)
        except InputError as error:
            return "changed since this run began" in str(error)
        return False

    assert {name for name, arguments in stages.items() if stops(arguments)} == stopped


def test_code_that_changed_stops_a_stage_of_dvc(written, monkeypatch):
    monkeypatch.setattr(resolve, "code_digest", lambda module: f"another {module}")
    with pytest.raises(InputError, match=r"ingest-archive\.json still says"):
        resolve.check_unchanged(load_config(), "ingest", "archive")


def test_the_command_asks_first(tmp_path, raft, monkeypatch):
    project = copy_project(tmp_path, {})
    assert raft(project, "resolve").returncode == 0
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("learning_rate:", "learning_rate: 1.0e-5  #", 1))
    assert (project / "params.yaml").read_text() != text
    monkeypatch.setenv(resolve.DVC_STAGE, "distill@archive-sft-0")
    done = raft(project, "stage", "distill", "archive", "sft", "0")
    assert done.returncode == 1
    assert "error: distill archive-sft-0: params.yaml, a model" in done.stderr


def test_what_a_running_stage_depends_on_is_not_written(tmp_path, monkeypatch):
    project = copy_project(tmp_path, {})
    monkeypatch.chdir(project)
    resolve.resolve(load_config())
    files = {path: path.read_text() for path in paths.RESOLVED.iterdir()}
    stage = {"pid": os.getppid(), "cmd": "dvc repro"}
    locked = str((project / paths.RESOLVED / "rewrite.json").resolve())
    (project / ".dvc/tmp").mkdir(exist_ok=True)
    (project / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {locked: [stage]}}))
    resolve.resolve(load_config())  # nothing differs
    document = yaml.safe_load(Path("params.yaml").read_text())
    document["train"] = {**document.get("train", {}), "learning_rate": 1e-5}
    with pytest.raises(OperationalError, match=r"a stage is running here(?s:.)*dvc repro\)$"):
        resolve.resolve(parse_config(document))
    assert {path: path.read_text() for path in paths.RESOLVED.iterdir()} == files
    (project / ".dvc/tmp/rwlock").write_text("{}")
    resolve.resolve(parse_config(document))
    assert {path: path.read_text() for path in paths.RESOLVED.iterdir()} != files


def test_what_stays_as_it_is_is_not_written_again(written, tmp_path):
    config = load_config()
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*.json")}
    assert len(before) > 15
    resolve.resolve(config)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*.json")} == before
