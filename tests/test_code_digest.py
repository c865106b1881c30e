"""A stage's code digest sees statements of what the stage imports, and nothing else."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raft_tasks.code_digest import closure, imports, tree_digest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ["harvest", "question", "ingest", "anchors", "rewrite", "semantic_filter", "fuse"]
STAGES += ["distill", "benchmark", "judge", "analyse", "report"]
DIGESTS = "import json, sys; from raft_tasks.code_digest import code_digest\n"
DIGESTS += "print(json.dumps({name: code_digest(f'flows.{name}') for name in sys.argv[1:]}))"


@pytest.fixture
def package(tmp_path):
    for name in ("flows", "raft_tasks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.jsonl"))
    return tmp_path


def stage_digests(package):
    command = [sys.executable, "-c", DIGESTS, *STAGES]
    environment = {"PYTHONPATH": str(package), "PATH": ""}
    return json.loads(subprocess.run(command, cwd=package, env=environment, check=True, capture_output=True).stdout)


def changed_stages(package, file, old, new):
    before = stage_digests(package)
    text = (package / file).read_text()
    assert text.count(old) == 1
    (package / file).write_text(text.replace(old, new))
    after = stage_digests(package)
    return {name for name in STAGES if before[name] != after[name]}


def test_an_edit_is_seen_by_a_process_that_has_read_the_file(package):
    edit = "print(code_digest('flows.ingest') != before, code_digest('flows.ingest') == code_digest('flows.ingest'))"
    program = "from pathlib import Path; from raft_tasks.code_digest import code_digest\n"
    program += "before = code_digest('flows.ingest'); file = Path('raft_tasks/ingest.py')\n"
    program += f"file.write_text(file.read_text() + 'x = 1')\n{edit}"
    environment = {"PYTHONPATH": str(package), "PATH": ""}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=package, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "True True\n"


def digest_of(source):
    return tree_digest(ast.parse(source))


def test_comments_docstrings_and_layout_change_nothing():
    plain = "def f(x):\n    return x + 1\n\nclass A:\n    y = 2\n"
    wordy = '"""M."""\n# why\ndef f(x):\n    """D."""\n    return (x\n        + 1)  # so\n\n'
    wordy += 'class A:\n    """C."""\n    y = 2\n'
    assert digest_of(plain) == digest_of(wordy)


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n    return x + 2\n",
        "def f(x, y=1):\n    return x + 1\n",
        "def g(x):\n    return x + 1\n",
        "def f(x):\n    return x + 1.0\n",
        "def f(x):\n    'text'\n    'and a statement'\n    return x + 1\n",
    ],
)
def test_a_statement_changes_it(other):
    assert digest_of("def f(x):\n    return x + 1\n") != digest_of(other)


def test_imports_at_the_top_in_functions_and_relative_ones_count_and_those_for_types_do_not():
    source = (
        "from typing import TYPE_CHECKING\nimport torch\nfrom raft_tasks.artifacts import digest\n"
        "if TYPE_CHECKING:\n    from raft_tasks.schemas import Example\n"
        "def f():\n    from . import errors\n"
    )
    names = set(imports(ast.parse(source), "raft_tasks.other", is_package=False))
    assert names == {"raft_tasks", "raft_tasks.artifacts", "raft_tasks.errors"}


def test_settings_are_tracked_by_value_and_not_as_code():
    assert not [name for name in closure("flows.distill") if name.startswith("raft_tasks.config")]


def test_a_comment_in_the_package_re_runs_nothing(package):
    for file in (package / "raft_tasks").rglob("*.py"):
        file.write_text(file.read_text() + "\n# a remark\n")
    text = package / "raft_tasks" / "chat.py"
    before = stage_digests(package)
    text.write_text("# another remark\n\n" + text.read_text())
    assert stage_digests(package) == before == stage_digests(ROOT)


def test_a_used_function_re_runs_exactly_its_stages(package):
    file, old = "raft_tasks/training/losses.py", "def masked_mean("
    changed = changed_stages(package, file, old, f"def unused():\n    return 1\n\n\n{old}")
    assert changed == {name for name in STAGES if "raft_tasks.training.losses" in closure(f"flows.{name}")}
    assert {"distill", "anchors"} <= changed  # the stage `anchors` keeps logits that the losses select
    assert not {"ingest", "rewrite", "semantic_filter", "benchmark", "report"} & changed


def test_the_code_that_scores_answers_re_runs_the_benchmark(package):
    file, old = "raft_tasks/evaluation/answer_metrics.py", "return score_answer("
    assert "benchmark" in changed_stages(package, file, old, "return 1 and score_answer(")


def test_what_only_the_report_uses_re_runs_only_the_report(package):
    file, old = "raft_tasks/reporting/paper.py", "from typing import Any"
    assert changed_stages(package, file, old, f"{old}\nVALUE = 1") == {"report"}
