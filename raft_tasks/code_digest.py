"""A digest of what code does: the syntax trees of a module and of all that it imports from the package.

Comments, docstrings, layout and line numbers do not enter it, so a rewording re-runs nothing; a changed statement in a
module that is imported, at its top or inside a function, changes the digest of every stage that reaches it.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path

PACKAGE = "raft_tasks"
# Settings are tracked by their values; how they are read and checked changes no result.
LEFT_OUT = ("raft_tasks.config.",)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest(root: str) -> str:
    """SHA-256 (hex) of the syntax trees of the module `root` and of everything that it imports from raft_tasks."""
    trees = "\n".join(f"{name} {_read(name)[0]}" for name in sorted(closure(root)))
    return hashlib.sha256(trees.encode()).hexdigest()


def closure(root: str) -> set[str]:
    """The module `root` and all modules of raft_tasks that it imports, directly or not."""
    waiting, reached = [root], set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(_read(name)[1])
    return reached


def _read(module: str) -> tuple[str, frozenset[str]]:
    """The digest of a module's syntax tree, and the modules of raft_tasks that it imports."""
    file = _file(module)
    assert file is not None
    state = file.stat()
    return _parse(module, file, (state.st_mtime_ns, state.st_size, state.st_ino))


@cache
def _parse(module: str, file: Path, state: tuple[int, ...]) -> tuple[str, frozenset[str]]:
    """As `_read`; a file in another `state` has been edited since it was parsed."""
    tree = ast.parse(file.read_bytes())
    return tree_digest(tree), frozenset(imports(tree, module, file.name == "__init__.py"))


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """Modules of raft_tasks that `module` imports, at its top or in functions, with their packages.

    Imports for type checkers alone do not count.
    """
    parent = module if is_package else module.rpartition(".")[0]
    for node in _without_type_checking(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), parent) if node.level else str(node.module)
            names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            for whole in (".".join(parts[:count]) for count in range(1, len(parts) + 1)):
                if parts[0] == PACKAGE and not f"{whole}.".startswith(LEFT_OUT) and _file(whole):
                    yield whole


def tree_digest(tree: ast.AST) -> str:
    """SHA-256 (hex) of a syntax tree without docstrings."""
    words: list[str] = []
    _add_words(tree, words)
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()


def _add_words(node: ast.AST, words: list[str]) -> None:
    """The tree as words. Not `ast.dump`, which changes between Python versions: empty fields are left out here."""
    words.append(type(node).__name__)
    for field in node._fields:
        value = getattr(node, field, None)
        items = value if isinstance(value, list) else [value]
        if field == "body" and isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            items = items[1:]
        for item in items:
            if isinstance(item, ast.AST):
                words.append(field)
                _add_words(item, words)
            elif item is not None:
                words.append(f"{field}={item!r}")
    words.append(".")


def _without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree, but for what type checkers alone see."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield node
            waiting.extend(ast.iter_child_nodes(node))


@cache
def _file(module: str) -> Path | None:
    """The file of a module of the project; None where there is none of that name."""
    package, *rest = module.split(".")
    folder = Path(str(import_module(package).__file__)).parent
    path = folder.joinpath(*rest)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)
