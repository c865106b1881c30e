"""Files, functions and signatures stay small enough to be read at once."""

import ast
from pathlib import Path

import pytest

PACKAGES = ("flows", "raft_tasks", "pocket_world")
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 7


def python_files(*folders):
    return sorted(file for folder in folders for file in Path(folder).rglob("*.py"))


def functions():
    for file in python_files(*PACKAGES):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{file}:{node.lineno} {node.name}", node


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "benchmarks"])
def test_no_file_is_too_long(folder):
    lengths = {str(file): len(file.read_bytes().splitlines()) for file in python_files(folder)}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > FILE_LINES} == {}


def test_no_function_is_too_long():
    lengths = {name: node.end_lineno - node.lineno + 1 for name, node in functions()}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}


def test_no_signature_is_too_long():
    def count(arguments):
        names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        return len([name for name in names if name not in ("self", "cls")])

    counts = {name: count(node.args) for name, node in functions()}
    assert {name: number for name, number in counts.items() if number > PARAMETERS} == {}
