"""The scripts of benchmarks/ run at toy sizes; what they start as child processes runs here, which is faster."""

import contextlib
import importlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name; its children become calls of its `main` in this process."""
    monkeypatch.syspath_prepend(SCRIPTS)

    def load(name):
        module = importlib.import_module(name)

        def run(command, **_):
            assert command[:2] == [sys.executable, module.__file__]
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                module.main(command[2:])
            return SimpleNamespace(stdout=printed.getvalue(), returncode=0)

        if hasattr(module, "subprocess"):
            monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run, PIPE=None))
        return module

    return load
