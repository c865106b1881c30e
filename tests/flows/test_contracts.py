"""dvc.yaml, params.yaml, the flows and the README tell the same story."""

import importlib.util
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from dvc.repo import Repo

from flows import paths
from flows.benchmark import stage_name
from flows.cli import StageName
from raft_tasks.config import load_config
from raft_tasks.registry import RELEASES, name_of, released

GRAPH = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
STAGES = {name: stage for name, stage in GRAPH.items() if name != "resolve"}  # those with a flow
BENCHMARKS = ("benchmark_base", "benchmark_champion")  # of models that nobody trains here


def word(stage):
    return "benchmark" if stage in BENCHMARKS else stage


def outputs(stage):
    for kind in ("outs", "metrics", "plots"):
        for out in stage.get(kind, []):
            yield next(iter(out)) if isinstance(out, dict) else out


def fill(text):
    values = {
        "item.domain": "d",
        "item.method": "m",
        "item.seed": "7",
        "run.rows": "jsonl",
    }
    return re.sub(r"\$\{([\w.]+)\}", lambda match: values[match.group(1)], text)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_command_is_a_flow_module_of_that_name(name):
    called = re.fullmatch(r"raft stage (\w+)( \$\{item\.\w+\}| champion)*", STAGES[name]["cmd"]).group(1)
    assert called == word(name)
    assert called in get_args(StageName)
    assert importlib.util.find_spec(f"flows.{called}")


def test_every_domain_can_be_fetched_by_its_models_name():
    named = yaml.safe_load(Path("dvc.yaml").read_text())["artifacts"]
    assert named == {
        name_of(domain): {"path": str(released(domain)), "type": "model"} for domain in load_config().domains
    }


def test_dvc_sees_the_models_that_retrain_adds():
    with Repo() as repo:  # DVC skips a folder whose name .gitignore seems to match, as with /releases/*/
        assert not any(repo.scm.is_ignored(f"{folder}/") for folder in (paths.CHAMPIONS, RELEASES))


def test_dvc_reads_the_graph():
    names = {stage.addressing.split("@")[0] for stage in Repo().index.stages}
    assert names == set(GRAPH) - {"harvest", "question", "benchmark_champion", "judge"}  # the demo has neither


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_depends_on_its_own_resolved_file_and_names_no_file_of_the_package(name):
    method = "-${item.method}" if word(name) in ("distill", "analyse") or name == "benchmark" else ""
    domain = "-${item.domain}" if name in ("harvest", "ingest") else ""
    resolved = f"{paths.RESOLVED}/{word(name)}{method}{domain}.json"
    if name == "report":  # which reads all artifacts
        assert GRAPH[name]["deps"][0] == str(paths.ARTIFACTS)
    else:
        assert [dep for dep in GRAPH[name]["deps"] if dep.startswith(str(paths.RESOLVED))] == [resolved]
    assert "params" not in GRAPH[name]
    assert not [dep for dep in GRAPH[name]["deps"] if dep.startswith(("flows", "raft_tasks", "pocket_world"))]


def test_outputs_are_where_the_flows_write():
    run, bench, base = paths.run("d", "m", 7), paths.benchmark("d", "m", 7), paths.benchmark("d", None, None)
    champion = paths.benchmark("d", "champion", None)
    expected = {
        "resolve": [paths.RESOLVED, paths.MODELS],
        "question": [paths.questions("d"), paths.question_rejects("d")],
        "harvest": [paths.harvested("d")],
        "ingest": [paths.examples("d"), paths.held_out("d"), paths.ingest_summary("d")],
        "anchors": [paths.ANCHORS],
        "rewrite": [paths.rewritten("d", "jsonl")],
        "semantic_filter": [paths.filtered("d", "jsonl")],
        "fuse": [paths.fused("d", "jsonl"), paths.judging("d"), paths.training("d")],
        "distill": [run / "model", run / "curve.csv", run / "summary.json", run / "steps.csv"],
        "benchmark": [paths.merged("d", "m", 7), bench / "items.jsonl", bench / "scores.json"],
        "benchmark_base": [base / "items.jsonl", base / "scores.json"],
        "benchmark_champion": [champion / "items.jsonl", champion / "scores.json"],
        "judge": [paths.judged("d") / "votes.jsonl", paths.judged("d") / "summary.json"],
        "analyse": [paths.analysis("d", "m", 7)],
        "report": [paths.REPORTS / name for name in ("report.html", "report.md", "metrics.json")],
    }
    found = {name: [Path(fill(out)) for out in outputs(stage)] for name, stage in GRAPH.items()}
    assert found == expected


def test_fuse_depends_on_the_questions_that_it_does_not_replay():
    assert str(paths.held_out("d")) in map(fill, GRAPH["fuse"]["deps"])


def test_domain_files_lie_where_dvc_watches():
    for name, domain in load_config().domains.items():
        assert all(file.startswith(f"data/{name}/") for file in domain.files)


def test_the_readme_tree_names_files_that_exist():
    tree = re.search(r"```text\n(.*?)```", Path("README.md").read_text(), re.DOTALL).group(1)
    names, folder = [], ""
    for indent, name in re.findall(r"^( *)(\S+)\s{2,}\S", tree, re.MULTILINE):
        folder = folder if indent else name
        names.append(folder + name if indent else name)
    assert len(names) > 10
    assert [name for name in names if not Path(name).exists()] == []


def test_the_readme_is_short():
    assert len(Path("README.md").read_text().splitlines()) <= 120
    assert len(Path("params.yaml").read_text().splitlines()) <= 60


def test_dvc_can_read_the_graph():
    from dvc.repo import Repo

    with Repo() as repo:
        names = {stage.addressing for stage in repo.index.stages}
    assert "distill@archive-raft-0" in names


def test_progress_lines_of_a_benchmark_begin_with_its_stage():
    names = {stage.addressing for stage in Repo(".").index.stages}
    assert stage_name("archive", "base", True) in names
    assert stage_name("archive", "raft-0", False) in names
    assert stage_name("law", "champion", True).split("@")[0] in GRAPH
