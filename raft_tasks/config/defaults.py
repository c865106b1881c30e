"""Defaults that depend on other keys: the catalogue's entries, files, validation tasks."""

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raft_tasks.artifacts import read_yaml
from raft_tasks.config.base import Section
from raft_tasks.config.evaluation import Benchmark, PromotionGate
from raft_tasks.config.generation import AnchorSet
from raft_tasks.config.training import Method

ROW_FILES = "data/{}/*.{{jsonl,csv,jsonl.gz,csv.gz,jsonl.zst,csv.zst,parquet}}"


@cache
def catalogue() -> dict[str, Any]:
    """{section: {name: entry}} of what params.yaml need not say."""
    return read_yaml(Path(__file__).with_name("catalogue.yaml"))


def fill_in(document: Any) -> Any:
    """The document of params.yaml with all defaults that depend on other keys. Wrong types stay, for validation."""
    if not isinstance(document, dict):
        return document
    document = dict(document)
    for section, kind in (("methods", Method), ("anchors", AnchorSet)):
        given = document.get(section, {})
        if isinstance(given, dict):
            entries = _extend(merge(catalogue()[section], given))
            run = document.get("run")
            wanted = {*given, *_names(run.get("methods") if isinstance(run, dict) else None)}
            # a fault in `raft` is no fault of the built-in rows that extend it, as long as nobody runs them
            document[section] = {name: row for name, row in entries.items() if name in wanted or _is_valid(kind, row)}
    domains = document.get("domains")
    if isinstance(domains, dict):
        built_in = {name: entry for name, entry in catalogue()["domains"].items() if name in domains}
        document["domains"] = {name: _row_files(name, domain) for name, domain in merge(built_in, domains).items()}
    return _benchmarks(document)


def _is_valid(kind: type[Section], entry: Any) -> bool:
    try:
        kind.model_validate(entry)
    except ValidationError:
        return False
    return True


def _names(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def merge(under: Any, over: Any) -> Any:
    """`over` laid upon `under`, mapping by mapping; a mapping of another `kind` replaces instead."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    if under.get("kind", over.get("kind")) != over.get("kind", under.get("kind")):
        return over
    return {**under, **{name: merge(under.get(name), value) for name, value in over.items()}}


def _extend(entries: dict[str, Any]) -> dict[str, Any]:
    """Replace `extends: NAME` by that entry's keys. Where it names no other entry the key stays, and is refused."""

    def full(name: str, before: tuple[str, ...]) -> Any:
        entry = entries[name]
        parent = entry.get("extends") if isinstance(entry, dict) else None
        if parent is None or parent not in entries or parent in (*before, name):
            return entry
        return merge(full(parent, (*before, name)), {key: value for key, value in entry.items() if key != "extends"})

    return {name: full(name, ()) for name in entries}


def _row_files(name: str, domain: Any) -> Any:
    if not isinstance(domain, dict) or "files" in domain or domain.get("hub"):
        return domain
    return {**domain, "files": [ROW_FILES.format(name)]}


def _benchmarks(document: dict[str, Any]) -> dict[str, Any]:
    """Fill in examples and pinned data of the benchmarks' tasks, and the tasks by which a coefficient is chosen."""
    given = document.get("benchmark", {})
    if not isinstance(given, dict):
        return document
    defaults = Benchmark()
    validation = given.get("validation_tasks", defaults.validation_tasks)
    methods = document.get("methods")
    if isinstance(methods, dict):
        document["methods"] = {name: _search_by(row, "merge", validation) for name, row in methods.items()}
    gate = document.get("gate", {})
    if isinstance(gate, dict):
        coefficients = {"coefficients": PromotionGate().recover.coefficients}  # type: ignore[union-attr]  # it has one
        gate = {**gate, "recover": merge(coefficients, gate.get("recover", {}))}
        document["gate"] = _search_by(gate, "recover", validation)
    names = set(_tasks(given.get("tasks", defaults.tasks), document))
    benchmarks = [(name, entry) for name, entry in catalogue()["benchmarks"].items() if name in names]
    few_shot = {name: entry["few_shot"] for name, entry in benchmarks if "few_shot" in entry}
    data = {source: place for _, entry in benchmarks for source, place in entry["data"].items()}
    document["benchmark"] = given | {
        name: {**filled, **given.get(name, {})} if isinstance(given.get(name, {}), dict) else given[name]
        for name, filled in (("few_shot", few_shot), ("data", data))
    }
    return document


def _search_by(section: Any, name: str, tasks: Any) -> Any:
    """`section` whose search for a coefficient, under `name`, has its default tasks."""
    search = section.get(name) if isinstance(section, dict) else None
    if not isinstance(search, dict) or search.get("kind") in ("prune", "dg_hard") or "tasks" in search:
        return section
    return {**section, name: {**search, "tasks": tasks}}


def _tasks(benchmark: Any, document: dict[str, Any]) -> list[str]:
    """The benchmark's tasks and those by which coefficients are chosen, as far as they are lists."""
    owners = [("merge", row) for row in (document.get("methods") or {}).values()] + [("recover", document.get("gate"))]
    searches = [owner.get(name) for name, owner in owners if isinstance(owner, dict)]
    lists = [benchmark, *(search.get("tasks") for search in searches if isinstance(search, dict))]
    return [task for tasks in lists for task in _names(tasks)]
