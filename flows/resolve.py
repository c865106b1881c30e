"""What every stage depends on beside its data: its settings, its models, its code; `raft resolve` writes it down.

One small JSON file a stage (and a method or domain, where that matters) in artifacts/resolved. DVC compares files: a
stage runs again where its own file differs. Settings are the values that hold, defaults included; code is a digest
that no comment changes (raft_tasks/code_digest.py).
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flows import paths
from raft_tasks import reporting
from raft_tasks.artifacts import atomic_folder, digest, digest_path, read_json, write_json
from raft_tasks.code_digest import code_digest
from raft_tasks.config import Config, Domain, Fuse, Harvest, Injection, Judge, Method, Question, Section, resolved
from raft_tasks.errors import InputError, OperationalError
from raft_tasks.file_digests import FileDigests
from raft_tasks.generation.templates import LIKELIHOOD_TEMPLATE, template_text
from raft_tasks.models import identify
from raft_tasks.sources.files import find_documents

REPORTING = Path(reporting.__path__[0])  # templates, style and the paper's numbers are files of the report too
STRUCTURED_TEMPLATES = ("data_rule.jinja", "repair.jinja")  # of every call that wants an answer by a schema

DVC_STAGE = "DVC_STAGE"  # DVC sets it for the commands that it runs

Files = dict[str, Any]  # {name of a file in artifacts/resolved, without .json: its content}


def resolve(config: Config) -> None:
    """Write artifacts/resolved and artifacts/models where they say something else than what holds now.

    Raises:
        InputError: a model, a template or a file that the config names is not there.
        OperationalError: they would be written while a stage runs that depends on them.
    """
    with FileDigests(paths.FILE_DIGESTS) as digests:
        identities = {role: identify(role, model, digests) for role, model in config.models.items()}
        files = resolved_files(config, identities, digests)
    current = {paths.RESOLVED: files, paths.MODELS: identities}
    outdated = {
        folder: contents
        for folder, contents in current.items()
        if {path.stem: read_json(path) for path in folder.glob("*.json")} != contents
    }
    if not outdated:
        return
    with _write_lock(*outdated):
        for folder, contents in outdated.items():
            with atomic_folder(folder) as partial:
                for name, content in contents.items():
                    write_json(partial / f"{name}.json", content)


@contextmanager
def _write_lock(*folders: Path) -> Iterator[None]:
    """DVC's lock on what a stage writes; a command that DVC runs has it already, and outside of DVC there is none.

    DVC reads a stage's dependencies once more when the stage has ended, and records those with its outputs.
    """
    if DVC_STAGE in os.environ or not Path(".dvc").is_dir():
        yield
        return
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.rwlock import rwlock

    with Repo() as repo, ExitStack() as held:
        written, hardlink = [str(folder.absolute()) for folder in folders], repo.config["core"]["hardlink_lock"]
        try:
            held.enter_context(rwlock(repo.tmp_dir, repo.fs, "raft", [], written, hardlink))
        except LockError as error:
            raise OperationalError(
                "a stage is running here with other settings, models or code than those of now; wait until that run "
                f"has ended, or end it, then run again (DVC: {str(error).partition(chr(10) * 2)[0]})"
            ) from error
        yield


def check_unchanged(config: Config, stage: str, domain: str | None = None, method: str | None = None) -> None:
    """Check that a stage which DVC runs would run with what its file in artifacts/resolved says.

    Raises:
        InputError: they differ, so DVC would record the stage's outputs under settings that they do not have.
    """
    suffix = domain if stage in ("harvest", "ingest") else method
    path = paths.RESOLVED / f"{stage}-{suffix}.json"
    path = path if path.exists() else paths.RESOLVED / f"{stage}.json"
    with FileDigests(paths.FILE_DIGESTS, write=False) as digests:
        identities = {role: identify(role, model, digests) for role, model in config.models.items()}
        content = Stages(config, identities, digests).all().get(path.stem)
    recorded = read_json(path)
    if content is None or recorded != {"code": code_digest(f"flows.{stage}"), **content}:
        raise InputError(
            f"params.yaml, a model, a file that it names, or the code changed since this run began; {path} still says "
            "what held then. Run the same command again: finished stages are kept"
        )


def resolved_files(config: Config, identities: Mapping[str, Any], digests: FileDigests) -> Files:
    """The content of every file in artifacts/resolved."""
    return {
        name: {"code": code_digest(f"flows.{name.partition('-')[0]}"), **content}
        for name, content in Stages(config, identities, digests).all().items()
    }


class Stages:
    """What the stages depend on, by the part of the pipeline that they belong to."""

    def __init__(self, config: Config, identities: Mapping[str, Any], digests: FileDigests) -> None:
        self.config, self.identities, self.digests = config, identities, digests
        self.methods = {name: config.methods[name] for name in config.run.methods}

    def all(self) -> Files:
        """All files, but for the digests of the code."""
        return self.data() | self.refinement() | self.training() | self.evaluation()

    def data(self) -> Files:
        config = self.config
        checkers = (checker.model for checker in config.question.checkers)
        return {
            **{f"harvest-{domain}": self.harvest(config.harvest[domain]) for domain in config.run.harvest},
            "question": self.calls("question", {config.question.model, *checkers}),
            **{f"ingest-{domain}": self.ingest(config.domains[domain]) for domain in config.run.domains},
        }

    def harvest(self, sources: list[Harvest]) -> dict[str, Any]:
        folders = self.local(*(source.hub.id for source in sources))
        return {"harvest": [resolved(source) for source in sources], **folders}

    def ingest(self, domain: Domain) -> dict[str, Any]:
        """What decides on a row: also what the base can learn and be asked, and benchmarks that rows may not repeat."""
        config = self.config
        return {
            "ingest": resolved(config.ingest),
            "domain": resolved(domain),
            **self.local(domain.hub.id if domain.hub else None),
            "models": self.models({"base"}),
            "train": _only(config.train, "max_length", "too_long", "curve"),
            "teachers": self.teachers(),
            "benchmark": _only(config.benchmark, "max_new_tokens"),
            "rows": config.run.rows,
            **(self.items(config.benchmark.tasks) if domain.hygiene.contamination is not None else {}),
        }

    def teachers(self) -> list[Any]:
        """What the methods' teachers see of a row, each once."""
        kinds = [
            [method.teacher, template_digests(method), method.distillation.rollout_max_new_tokens]
            for method in self.methods.values()
            if method.distillation
        ]
        return sorted({str(kind): kind for kind in kinds}.values(), key=str)

    def refinement(self) -> Files:
        config = self.config
        judges = (judge.model for judge in config.fuse.models)
        return {
            "rewrite": self.calls("rewrite", {config.rewrite.model}),
            "semantic_filter": {
                "semantic_filter": resolved(config.semantic_filter),
                "templates": template_digests(config.rewrite),
                **self.local(config.semantic_filter.encoder),
                **self.checks(),
            },
            "fuse": {
                **self.calls("fuse", {"base", config.fuse.model, *judges}),
                "calibration": self.calibration(config.fuse),
                **self.local(config.fuse.encoder),
                **self.checks(),
                "methods": {name: self.training_pairs(method) for name, method in self.methods.items()},
            },
        }

    def training_pairs(self, method: Method) -> dict[str, Any]:
        """What of a method decides on its training pairs."""
        patterns = method.replay.patterns if method.replay else []
        files = {str(file): self.digest(file) for pattern in patterns for file in sorted(Path().glob(pattern))}
        replay = resolved(method.replay) if method.replay else None
        rows = {"target": method.target, "mixed": method.mixing is not None, "replay": replay, "files": files}
        return rows | (self.injected(method.injection) if method.injection else {})

    def injected(self, injection: Injection) -> dict[str, Any]:
        domains = self.config.run.domains
        return {"instruction": injection.instruction, "documents": {name: self.documents(name) for name in domains}}

    def documents(self, domain: str) -> dict[str, Any]:
        """What decides on a domain's documents; of those that `harvest` is about to write, what decides on them."""
        harvested = domain in self.config.run.harvest
        files = find_documents(paths.documents(domain), required=not harvested)
        return {
            "files": {str(file): self.digest(file) for file in files if file != paths.harvested(domain)},
            "harvest": self.harvest(self.config.harvest[domain]) if harvested else None,
            "privacy": self.config.domains[domain].hygiene.privacy,
        }

    def training(self) -> Files:
        return {"anchors": self.anchors()} | {
            f"distill-{name}": {
                "train": resolved(self.config.train),
                "method": _without(method, "merge"),
                "models": self.models({"base"}),
                "templates": template_digests(method),
                **self.local(method.distillation.teacher_adapter if method.distillation else None),
                **(self.checks() if self.config.train.curve else {}),
            }
            for name, method in self.methods.items()
        }

    def anchors(self) -> dict[str, Any]:
        config, curve = self.config, self.config.train.curve
        sets = {name: config.anchors[name] for name in config.anchor_sets}
        tasks = {task for row in sets.values() if row.without for task in row.without.tasks}
        tasks |= {*config.benchmark.tasks} if sets else set()
        return {
            "sets": {name: resolved(row) for name, row in sets.items()},
            # all of them: the stage writes a file for each, which its training depends on
            "methods": {name: method.anchors.set if method.anchors else None for name, method in self.methods.items()},
            **({"curve": curve.sets} if curve else {}),
            "encoder": _only(config.semantic_filter, "encoder", "revision") if sets else None,
            **self.local(config.semantic_filter.encoder if sets else None),
            "models": self.models({"base", *(row.model for row in sets.values())}) if sets else {},
            "prompts": {name: self.digest(paths.user_turns(row.prompts)) for name, row in sets.items() if row.prompts},
            **(self.items(tasks) if sets else {}),
        }

    def evaluation(self) -> Files:
        config = self.config
        settings = _without(config.benchmark, "validation_tasks")
        common = {"benchmark": settings, "models": self.models({"base"}), **self.checks()}
        files = {"benchmark": common | self.tasks(config.benchmark.tasks)}
        for name, method in self.methods.items():
            tasks = [*config.benchmark.tasks, *getattr(method.merge, "tasks", [])]
            merge = resolved(method.merge) if method.merge else None
            files[f"benchmark-{name}"] = {**common, "merge": merge, **self.tasks(tasks)}
            files[f"analyse-{name}"] = {
                "models": self.models({"base"}),
                "batch_size": config.benchmark.batch_size,
                "templates": template_digests(method),
            }
        files["judge"] = {
            **self.calls("judge", {judge.model for judge in config.judge.judges}),
            "calibration": self.calibration(config.judge),
            "run": _only(config.run, "methods", "seeds"),
        }
        page = {
            str(file.relative_to(REPORTING)): digest_path(file)
            for file in sorted(REPORTING.rglob("*"))
            if file.is_file() and file.suffix not in (".py", ".pyc")
        }
        return files | {"report": {"report": resolved(config.report), "run": resolved(config.run), "page": page}}

    def checks(self) -> dict[str, Any]:
        """By domain, the checks of those that have some."""
        domains = {name: self.config.domains[name].checks for name in self.config.run.domains}
        rules = {name: {check: resolved(rule) for check, rule in of.items()} for name, of in domains.items() if of}
        return {"checks": rules} if rules else {}

    def calls(self, name: str, roles: set[str]) -> dict[str, Any]:
        """What a section that asks models depends on."""
        section: Section = getattr(self.config, name)
        return {name: resolved(section), "models": self.models(roles), "templates": template_digests(section)}

    def models(self, roles: set[str]) -> dict[str, Any]:
        return model_contents({role: self.identities[role] for role in sorted(roles)})

    def calibration(self, section: Fuse | Judge) -> str | None:
        return self.digest(paths.labels(section.calibration)) if section.calibration else None

    def tasks(self, names: Collection[str]) -> dict[str, Any]:
        """The benchmark tasks that lie in folders, by content, and the mirrors of data sets of all tasks."""
        folders = [
            folder
            for folder in sorted(paths.BENCHMARK_TASKS.iterdir())
            if any((folder / f"{name}.yaml").is_file() for name in names)
        ]
        mirrors = {name: source.mirror for name, source in self.config.benchmark.data.items() if source.mirror}
        return {
            "tasks": {folder.name: self.task(folder) for folder in folders},
            "mirrors": {name: self.digest(Path(mirror)) for name, mirror in sorted(mirrors.items())},
        }

    def items(self, names: Collection[str]) -> dict[str, Any]:
        """What decides which benchmark items nothing learned may repeat: the tasks, lm-eval's own by their names."""
        pins = {name: source.revision for name, source in self.config.benchmark.data.items() if source.revision}
        return {**self.tasks(names), "names": sorted(names), "pins": pins}

    def local(self, *names: str | None) -> dict[str, Any]:
        """Local folders that stand in place of a hub id, by content: the name alone would hide a change."""
        folders = {name: self.digests.of(Path(name)) for name in names if name and Path(name).is_dir()}
        return {"folders": folders} if folders else {}

    def digest(self, path: Path) -> str:
        if not path.exists():
            raise InputError(f"params.yaml names {path}, which is not there; put it there or correct the name")
        return self.digests.of(path)

    def task(self, folder: Path) -> str:
        """A task folder's digest, without what Python and people leave there."""
        files = (file for file in sorted(folder.rglob("*")) if file.is_file())
        kept = (file for file in files if file.suffix not in (".pyc", ".md"))
        return digest({str(file.relative_to(folder)): self.digest(file) for file in kept})


def model_contents(identities: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What models are: of a folder its bytes, wherever it lies."""
    return {
        role: {key: value for key, value in identity.items() if key != "path" or "sha256" not in identity}
        for role, identity in identities.items()
    }


def template_digests(section: Section) -> dict[str, str]:
    """{name: digest} of the prompt templates that a section names or its judges render."""
    names = set(_templates(section.model_dump()))
    if isinstance(section, Judge):
        names.update(section.tasks.values())
    if isinstance(section, Fuse) and "likelihood" in section.judges:
        names.add(LIKELIHOOD_TEMPLATE)
    if isinstance(section, (Question, Judge)) or (isinstance(section, Fuse) and section.models):
        names.update(STRUCTURED_TEMPLATES)
    return {name: digest(template_text(name)) for name in sorted(names)}


def _only(section: Section, *names: str) -> dict[str, Any]:
    return {name: value for name, value in resolved(section).items() if name in names}


def _without(section: Section, *names: str) -> dict[str, Any]:
    return {name: value for name, value in resolved(section).items() if name not in names}


def _templates(value: Any) -> Iterator[str]:
    """The values of all keys `template` and `tie_break`, however deep."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("template", "tie_break") and isinstance(item, str):
                yield item
            else:
                yield from _templates(item)
    elif isinstance(value, list):
        for item in value:
            yield from _templates(item)
