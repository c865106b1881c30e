import copy
from pathlib import Path

import pytest
import yaml

from flows import sweep as sweeps
from raft_tasks.config import parse_config
from raft_tasks.errors import InputError

DEFINITIONS = yaml.safe_load(sweeps.DEFINITIONS.read_text())


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_value_of_a_sweep_makes_good_params(name):
    raw = yaml.safe_load(Path("params.yaml").read_text())
    definition = DEFINITIONS[name]
    assert set(definition["methods"]) <= set(parse_config(raw).methods)
    *where, key = definition["parameter"].split(".")
    for value in definition["values"]:
        changed = copy.deepcopy(raw)
        node = changed
        for part in where:
            node = node.setdefault(part, {})
        node[key] = value
        parse_config(changed)


def test_scores_are_those_of_metrics_json():
    score = {"estimate": 0.9, "low": None, "high": None, "n_seeds": 3}
    metrics = {"domains": {"archive": {"methods": {"raft": {"scores": {"domain_acc": score}}, "base": {}}}}}
    assert list(sweeps.scores(metrics, ["raft"])) == [["archive", "raft", 3, "domain_acc", 0.9, None, None]]


def test_a_project_without_sweeps_is_told_what_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"sweeps/sweeps.yaml is not there; expected .* such as\ntau:"):
        sweeps.sweep("tau")
    Path("sweeps").mkdir()
    sweeps.DEFINITIONS.write_text(sweeps.EXAMPLE)
    assert sweeps.read_definition("tau") == ("semantic_filter.tau", [0.5, 0.8], ["raft"])
    sweeps.DEFINITIONS.write_text("tau: {parameter: semantic_filter.tau, value: 0.5}\n")
    with pytest.raises(InputError, match=r"sweeps.yaml: tau: got \{.*'value': 0.5\}, expected"):
        sweeps.sweep("tau")


def test_an_unknown_sweep_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"got the sweep 'nothing', expected one of .*: \[.*'tau'"):
        sweeps.sweep("nothing")


def test_uncommitted_changes_are_no_part_of_an_experiment(monkeypatch):
    monkeypatch.setattr(sweeps, "git", lambda *command: " M params.yaml" if command[0] == "status" else "")
    monkeypatch.setattr(sweeps, "dvc", lambda *command: pytest.fail("nothing is to be queued"))
    with pytest.raises(InputError, match=r"not as HEAD; commit or stash:\n M params.yaml"):
        sweeps.sweep("tau")


def test_an_edited_definition_does_not_rename_experiments_that_are_there(monkeypatch):
    def git(*command):
        if command[0] != "status":
            return "all are there"
        return " M sweeps/sweeps.yaml" if str(sweeps.DEFINITIONS) in command else ""

    monkeypatch.setattr(sweeps, "git", git)
    monkeypatch.setattr(sweeps, "read_dvc", lambda *_, **__: pytest.fail("nothing is to be collected"))
    with pytest.raises(InputError, match=r"commit or stash:\n M sweeps/sweeps.yaml"):
        sweeps.sweep("tau")
