"""What would make a run fail, found before anything runs: each check yields every fault that it finds.

No check imports torch, transformers, lm-eval, Prefect or DVC, so all of them together take a second or two, those
that ask other machines (`check_endpoints`) aside.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raft_tasks import gguf, model_files
from raft_tasks.chat import check_prompt
from raft_tasks.config import Config, Domain, Endpoint, Method, Model, read_document
from raft_tasks.config.base import walk
from raft_tasks.config.config import ANY_NAMES
from raft_tasks.config.faults import explain
from raft_tasks.errors import InputError
from raft_tasks.evaluation.task_files import missing_data
from raft_tasks.proxies import is_loopback, proxy_note
from raft_tasks.sources.files import RawRow, find_documents, find_files, is_match, read_file
from raft_tasks.sources.roles import roles_of
from raft_tasks.template_file import TemplateFile

OUR_TASKS = Path(__file__).parent / "evaluation" / "tasks"
HEAD_ROWS = 2000  # of a data file that are read
ENDPOINT_SECONDS = 8.0
EMBEDDING = re.compile(r"embed|lm_head|^output\.|token_embd")
WIDTH = {"float32": 4, "bfloat16": 2}  # bytes of a number
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Fault:
    """Something that a run would fail of: a key, file or service, what is there, what is expected, what to do."""

    where: str
    got: str
    expected: str = ""
    action: str = ""

    def __str__(self) -> str:
        expected = f", expected {self.expected}" if self.expected else ""
        return f"{self.where}: {self.got}{expected}" + (f"\n    -> {self.action}" if self.action else "")


def read_leniently(path: Path) -> tuple[Config | None, list[Fault]]:
    """The configuration as far as it can be read, wrong keys left out; None where too little is left."""
    try:
        document = read_document(path)
    except InputError as error:
        return None, [Fault(str(path), str(error))]
    try:
        return Config.model_validate(document), []
    except ValidationError as error:
        faults = [_key_fault(path, line) for line in explain(Config, error)]
    for _ in range(20):
        try:
            return Config.model_validate(document, context=ANY_NAMES), faults
        except ValidationError as error:
            for problem in error.errors():
                document = _without(document, list(walk(Config, problem["loc"])[0]), problem["loc"])
    return None, faults


def _key_fault(path: Path, line: str) -> Fault:
    key, _, message = line.strip().partition(": ")
    return Fault(f"{path}: {key}", message, action="`raft config show` prints the keys that hold")


def _without(document: Any, parts: list[Any], location: tuple[Any, ...]) -> Any:
    """The document without the key of a fault, or without the deepest part of its path that is there."""
    if location and location[-1] not in parts[-1:]:
        parts = [*parts, location[-1]]
    if not isinstance(document, dict) or not parts or parts[0] not in document:
        return document
    child = document[parts[0]]
    reduced = _without(child, parts[1:], ()) if isinstance(child, dict) and len(parts) > 1 else child
    if reduced == child:  # the key itself, or one that is missing below it
        return {name: value for name, value in document.items() if name != parts[0]}
    return {**document, parts[0]: reduced}


def check_files(config: Config) -> list[Fault]:
    """Data, models, templates and benchmarks."""
    checks = (check_rows, check_documents, check_models, check_templates, check_benchmarks)
    return [fault for check in checks for fault in check(config)]


def check_rows(config: Config) -> Iterator[Fault]:
    """Files of every domain are there, and their first rows have the columns."""
    for name in config.run.domains:
        domain = config.domains.get(name)
        if domain is None:
            continue
        if domain.hub and domain.hub.revision is None and not Path(domain.hub.id).is_dir():
            yield Fault(f"domains.{name}.hub.revision", "null", "a commit of 40 digits", pin(domain.hub.id, "dataset"))
        if name in {*config.run.documents} - {*config.run.harvest} and not Path("documents", name).is_dir():
            yield Fault(f"documents/{name}", "no such folder", "documents", "put them there, or see run.harvest")
        files: list[Path] = []
        try:
            files = find_files(domain.files, Path())
        except InputError as error:
            if name not in config.run.documents:
                yield Fault(f"domains.{name}.files", str(error), action=f"put question-answer pairs into data/{name}/")
        made = Path("data", name, "questions.jsonl") if name in config.run.documents else None
        if made and not any(is_match(made, pattern) for pattern in domain.files):
            wanted = f"a pattern of {made} too: the pairs of its documents would not be read"
            yield Fault(f"domains.{name}.files", str(domain.files), wanted, f"add {made}")
        for file in files:
            if file != made:  # `question` writes it
                yield from _check_file(file, name, domain)


def check_documents(config: Config) -> Iterator[Fault]:
    """The run's domains have documents where one of its methods learns them."""
    injecting = [name for name in config.run.methods if name in config.methods and config.methods[name].injection]
    for domain in config.run.domains if injecting else []:
        try:
            if domain not in config.run.harvest:
                find_documents(Path("documents", domain))
        except InputError as error:
            action = f"put its documents there, or take {', '.join(injecting)} out of run.methods"
            yield Fault(f"methods.{injecting[0]}.injection", str(error), action=action)


def _check_file(file: Path, name: str, domain: Domain) -> Iterator[Fault]:
    rows = unusable = 0
    missing = {"question", "answer"} if domain.chat is None else {"chat"}
    try:
        for row in islice(read_file(file, roles_of(domain)), HEAD_ROWS):
            rows += 1
            if isinstance(row, RawRow):
                missing -= row.values.keys()
            else:
                unusable += 1
    except InputError as error:
        yield Fault(f"domains.{name}", str(error))
        return
    if missing or unusable == rows:
        got = f"no value for {sorted(missing)} in {rows} rows" if rows else "no rows"
        yield Fault(f"{file}", got, "question-answer pairs", f"correct the file, or domains.{name}.columns")


def check_models(config: Config) -> Iterator[Fault]:
    """Every local model's weights are there, or pinned to a commit of the hub."""
    for role, model in config.models.items():
        if isinstance(model, Model):
            yield from _check_model(f"models.{role}", model, Path(model.path))
    for section in ("semantic_filter", "fuse"):
        settings = getattr(config, section)
        hub_id = "/" in settings.encoder and not Path(settings.encoder).is_dir()
        if hub_id and settings.revision is None:
            yield Fault(f"{section}.revision", "null", "a commit of 40 digits", pin(settings.encoder))
        elif "/" not in settings.encoder and find_spec(settings.encoder) is None:
            yield Fault(f"{section}.encoder", repr(settings.encoder), "an installed package, a folder or a hub id")


def _check_model(key: str, model: Model, path: Path) -> Iterator[Fault]:
    if path.is_dir():
        for got, expected, action in model_files.find_faults(path, trained=key == "models.base"):
            yield Fault(f"{key}.path", got, expected, action)
    elif path.suffix == ".gguf" and path.is_file():
        if model_files.is_pointer(path):
            yield Fault(f"{key}.path", f"{path} is a Git-LFS pointer", "the file itself", "`git lfs pull` there")
            return
        try:
            gguf.describe(path)
        except InputError as error:
            yield Fault(f"{key}.path", str(error))
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", model.path) or model.path.startswith("models/"):
        yield Fault(f"{key}.path", f"{model.path!r}, which does not exist", "a folder, or a hub id (owner/name)")
    elif not COMMIT.fullmatch(model.revision or ""):
        yield Fault(f"{key}.revision", repr(model.revision), f"a commit of {model.path}, 40 digits", pin(model.path))


def pin(repository: str, kind: str = "model") -> str:
    """How a commit of the hub is found: what is unpinned can change between two stages."""
    command = f"from huggingface_hub import {kind}_info; print({kind}_info('{repository}').sha)"
    return f'`python -c "{command}"` prints the newest one'


def check_templates(config: Config) -> Iterator[Fault]:
    """Every local model's chat template can be rendered, with the system prompt."""
    for role, model in config.models.items():
        if isinstance(model, Model) and Path(model.path).is_dir():
            try:
                template: Any = TemplateFile(Path(model.path))
                check_prompt(template, model.system, model.thinking)
            except InputError as error:
                yield Fault(f"models.{role}", str(error))


def check_benchmarks(config: Config) -> Iterator[Fault]:
    """Tasks are known, their data pinned or mirrored with the splits that are read, and IFEval's splitter is there."""
    merges = [config.methods[name].merge for name in config.run.methods if name in config.methods]
    tasks = [*config.benchmark.tasks, *(task for merge in merges for task in getattr(merge, "tasks", []))]
    settings = config.benchmark.model_copy(update={"tasks": list(dict.fromkeys(tasks))})
    for message in missing_data(settings, OUR_TASKS):
        yield Fault("benchmark", message)
    files = [folder / "tokenizers" / name for folder in nltk_folders() for name in ("punkt_tab", "punkt_tab.zip")]
    if any("ifeval" in task for task in tasks) and not any(file.exists() for file in files):
        action = "`raft mirror ifeval`, or `python -m nltk.downloader punkt_tab`"
        yield Fault("benchmark.tasks: ifeval", "nltk's punkt_tab is not installed", "its sentence splitter", action)


def nltk_folders() -> list[Path]:
    """Where nltk looks for its data."""
    prefixes = (sys.prefix, f"{sys.prefix}/share", f"{sys.prefix}/lib", str(Path.home()), "/usr/share",
                "/usr/local/share", "/usr/lib", "/usr/local/lib")  # fmt: skip
    given = filter(None, os.environ.get("NLTK_DATA", "").split(os.pathsep))
    return [*map(Path, given), *(Path(prefix, "nltk_data") for prefix in prefixes)]


def weight_shapes(model: Path) -> dict[str, list[int]]:
    """Of a GGUF file, or of the safetensors files in a folder by their headers; empty where there are none."""
    try:
        if model.suffix == gguf.SUFFIX and model.is_file():
            return gguf.read_shapes(model)
        headers = [model_files.read_header(file) for file in model.glob("*.safetensors")]
    except (InputError, *model_files.DAMAGED):  # a pointer, or broken: check_models says so
        return {}
    return {name: tensor["shape"] for header in headers for name, tensor in header.items()}


def artifact_bytes(shapes: Mapping[str, Sequence[int]], dtype: str, method: Method) -> int:
    """What a training leaves: of LoRA the float32 matrices [rank, in] and [out, rank] of at most all linear layers."""
    if method.lora is None:
        return WIDTH[dtype] * sum(map(prod, shapes.values()))
    layers = [shape for name, shape in shapes.items() if len(shape) == 2 and not EMBEDDING.search(name)]
    return WIDTH["float32"] * method.lora.rank * sum(map(sum, layers))


def disk_of_run(
    config: Config, shapes: Mapping[str, Sequence[int]], missing: Callable[[str, str, int], bool]
) -> tuple[int, int, int]:
    """Trainings that are still to be made, bytes that they leave (DVC's cache has copies), bytes of checkpoints.

    Args:
        missing: whether domain, method and seed have no model yet.
    """
    parameters, dtype = sum(map(prod, shapes.values())), config.base.dtype
    trainings, artifacts, checkpoint = 0, 0, 0
    for name in (name for name in config.run.methods if name in config.methods):
        row = config.methods[name]
        models = [(d, s) for d, s in product(config.run.domains, config.run.seeds) if missing(d, name, s)]
        size = artifact_bytes(shapes, dtype, row)
        merged = WIDTH[dtype] * parameters if row.merge is not None else 0
        trainings += len(models)
        artifacts += 2 * len(models) * (size + merged)
        # weights and AdamW's two moments, all float32; and what the injection ended with
        trained = size if row.lora else WIDTH["float32"] * parameters
        copies = 4 if row.injection else 3
        checkpoint = max(checkpoint, copies * trained if models else 0)
    return trainings, artifacts, config.resources.processes * checkpoint


def check_endpoints(config: Config) -> list[Fault]:
    """One token from every endpoint, all at once."""
    endpoints = [(role, model) for role, model in config.models.items() if isinstance(model, Endpoint)]
    with ThreadPoolExecutor(max(1, len(endpoints))) as pool:
        return [fault for fault in pool.map(lambda item: _ask(*item), endpoints) if fault]


def _ask(role: str, model: Endpoint) -> Fault | None:
    import httpx

    key = os.environ.get(model.api_key_env or "")
    if model.api_key_env and not key:
        return Fault(f"models.{role}.api_key_env", f"the variable {model.api_key_env} is not set", "the API's key")
    # The fields of a run, with values that no model has as its only ones; reasoning models need some tokens.
    body = {"model": model.model, "messages": [{"role": "user", "content": "Hi"}], model.length_field: 16}
    body |= {name: value for name, value in (("temperature", 0.5), ("top_p", 0.9)) if name in model.sampling_fields}
    body |= {"seed": 0} if model.seeds else {}
    address, action = (
        f"{model.base_url.rstrip('/')}/chat/completions",
        "start the server, or correct base_url and model",
    )
    headers = {"Authorization": f"Bearer {key or 'none'}"}
    try:
        answer = httpx.post(
            address,
            json=body | model.options,
            headers=headers,
            timeout=ENDPOINT_SECONDS,
            trust_env=not is_loopback(address),
        )
    except (httpx.HTTPError, ImportError) as error:  # a SOCKS proxy needs a package
        got = f"no answer from {address}{proxy_note(address)}: {error}"
        return Fault(f"models.{role}", got, "an OpenAI-compatible API", action)
    if answer.is_success:
        return None
    why = answer.text.encode("utf-8", "replace").decode()[:200].replace(key or "\0", "***")
    got = f"{address} answers {answer.status_code} {answer.reason_phrase}: {why}"
    return Fault(f"models.{role}", got, "an answer", f"{action}; for a field that it refuses see its other settings")
