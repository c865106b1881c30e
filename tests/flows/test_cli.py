"""The command `raft`: light, with help on everything, and errors without tracebacks."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from flows import reference
from flows.cli import app, main
from raft_tasks.artifacts import parse_yaml
from raft_tasks.config import load_config
from raft_tasks.errors import InputError

COMMANDS = {
    "init", "run", "plan", "stage", "config show", "config schema", "compare", "gate", "chat", "export", "retrain",
    "rollback", "history", "deploy", "worker", "ui", "sweep", "cache", "cache prune", "prune",
}  # fmt: skip
HEAVY = ("prefect", "torch", "dvc", "transformers", "pydantic")


def commands(group, path=()):
    """Every command of the app by its words."""
    for name, command in group.commands.items():
        if getattr(command, "invoke_without_command", True):
            yield " ".join([*path, name]), command
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


def raft(*arguments):
    app(list(arguments), standalone_mode=False)


def test_help_imports_nothing_heavy():
    code = f"import sys, flows.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_run_with_nothing_to_do_imports_no_prefect():
    code = "import sys, flows.run; print('prefect' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_every_command_and_option_has_a_sentence_of_help():
    found = dict(commands(typer.main.get_command(app)))
    assert set(found) >= COMMANDS
    for name, command in found.items():
        first = (command.help or "").split("\n")[0]
        assert first.endswith("."), name
        assert len(first) <= 67, name  # the list of `raft --help` shows it whole
        assert all(getattr(parameter, "help", None) for parameter in command.params), name


def test_no_module_parses_the_command_line_by_hand():
    handing_over = Path("flows/stage_host.py")  # passes the command line on as it is
    for path in {*Path("flows").glob("*.py")} - {handing_over}:
        attributes = [node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        assert "argv" not in attributes, path
        assert "argparse" not in path.read_text(), path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage", "ingest", "archive", "raft"], r"stage ingest: got \['archive', 'raft'\], expected domain"),
        (["config", "show", "train.epoch"], r"got the key 'train.epoch', expected for 'epoch' one of .*epochs"),
        (["sweep", "nothing"], "got the sweep 'nothing'"),
        (["plan", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_without_a_traceback(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["raft", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert re.match(f"error: .*{message}", str(end.value.code))


def test_an_unknown_stage_is_refused_with_the_known_ones(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["raft", "stage", "ingets"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "'ingest'" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail():
        raise KeyError("a bug")

    monkeypatch.setattr("flows.run.run_pipeline", fail)
    monkeypatch.setattr(sys, "argv", ["raft", "run"])
    with pytest.raises(KeyError, match="a bug"):
        main()


def test_config_shows_a_section_a_key_or_a_method(capsys):
    config = load_config()
    raft("config", "show", "train")
    assert parse_yaml(capsys.readouterr().out, "out") == {"train": config.train.model_dump(mode="json")}
    raft("config", "show", "train.epochs")
    assert parse_yaml(capsys.readouterr().out, "out") == {"train": {"epochs": config.train.epochs}}
    raft("config", "show", "raft")
    assert parse_yaml(capsys.readouterr().out, "out") == {"methods": {"raft": config.methods["raft"].model_dump()}}
    raft("config", "schema")
    assert "train" in yaml.safe_load(capsys.readouterr().out)["properties"]
    with pytest.raises(InputError):
        raft("config", "show", "nothing")


def test_the_reference_of_the_commands_is_current():
    assert reference.COMMANDS.read_text(encoding="utf-8") == reference.commands(), "run `make reference`"
