"""The command `raft`. Prefect, torch and DVC are imported inside the commands, so that `raft --help` is immediate."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows import paths
from flows.environment import PREFECT_PORT
from raft_tasks.errors import INTERRUPTED, InputError, Interrupted, OperationalError, check_name

StageName = Literal[
    "harvest", "question", "ingest", "anchors", "rewrite", "semantic_filter", "fuse", "distill", "benchmark",
    "judge", "analyse", "report",
]  # fmt: skip
PRESETS = sorted(path.stem for path in Path(__file__).parent.glob("project/presets/*.yaml"))
Domain = Annotated[str, typer.Argument(help="A domain of params.yaml.")]

app = typer.Typer(
    help="Fine-tune a language model on a domain, without losing its general abilities.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Show the configuration and its schema.", no_args_is_help=True)
cache_app = typer.Typer(help="Show or prune the cached responses of models.", invoke_without_command=True)
app.add_typer(config_app, name="config")
app.add_typer(cache_app, name="cache")


@app.command()
def init(
    domain: Annotated[str, typer.Option(help="The domain's name: lower-case letters, digits and _.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "pocket",
    data: Annotated[Path | None, typer.Option(help="The domain's rows: .jsonl, .csv, .parquet, ...")] = None,
    question: Annotated[str | None, typer.Option(help="Its question column; default: recognised.")] = None,
    answer: Annotated[str | None, typer.Option(help="Its answer column; default: recognised.")] = None,
    model: Annotated[str | None, typer.Option(help="A folder or OWNER/NAME@COMMIT; default: the preset's.")] = None,
) -> None:
    """Make this folder a project of one's own, kept by git and DVC."""
    from flows.init import Source
    from flows.init import init as init_project

    for line in init_project(preset, domain, Source(data, question, answer) if data else None, model):
        typer.echo(line)


@app.command()
def doctor() -> None:
    """Name everything that would make a run fail, each with what to do.

    The exit code is 1 if there is anything.
    """
    from flows.doctor import find_faults, list_faults

    faults = find_faults()
    if faults:
        typer.echo(list_faults(faults))
        raise typer.Exit(1)
    typer.echo("no faults: data, models, benchmarks, endpoints and this machine are ready for `raft run`")


@app.command()
def run() -> None:
    """Run every stage that is not up to date, then print the results."""
    from flows.run import run_pipeline

    run_pipeline()


@app.command()
def plan(
    domain: Annotated[str | None, typer.Argument(help="Only this domain.")] = None,
    method: Annotated[str | None, typer.Argument(help="Only this method.")] = None,
    seed: Annotated[int, typer.Argument(help="The training seed.")] = 0,
) -> None:
    """Estimate memory, time and disk of the trainings of `raft run`."""
    from flows.distill import print_plans
    from flows.doctor import describe_disk
    from raft_tasks.config import load_config

    print_plans(domain, method, seed)
    typer.echo(describe_disk(load_config()))


@app.command()
def stage(
    name: Annotated[StageName, typer.Argument(help="The stage, as dvc.yaml names it.")],
    domain: Annotated[str | None, typer.Argument(help="A domain of params.yaml.")] = None,
    method: Annotated[str | None, typer.Argument(help="A method of params.yaml, or `champion`.")] = None,
    seed: Annotated[int | None, typer.Argument(help="The training seed.")] = None,
) -> None:
    """Run one stage in this process, as the commands of dvc.yaml do."""
    from flows.stage import run_stage

    check_names(domain, method)
    run_stage(name, domain, method, seed)


@app.command()
def resolve() -> None:
    """Write down what each stage depends on: settings, models, code."""
    from flows.resolve import resolve as write_resolved
    from raft_tasks.config import load_config

    write_resolved(load_config())


@config_app.command("show")
def config_show(
    key: Annotated[str | None, typer.Argument(help="A section or key such as train.epochs, or a method.")] = None,
) -> None:
    """Print the configuration in force, defaults included, as YAML.

    What params.yaml sets is marked.
    """
    from raft_tasks.config import read_document
    from raft_tasks.config.show import show

    typer.echo(show(read_document(), key), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of params.yaml, for editors."""
    import json

    from raft_tasks.config.show import schema

    typer.echo(json.dumps(schema(), indent=2, ensure_ascii=False))


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="NAME=MODEL...", help="A folder, a hub id NAME@REVISION, or git:REVISION:METHOD-SEED."),
    ],
    domain: Annotated[list[str] | None, typer.Option(help="Repeatable; default: run.domains.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="General lm-eval tasks, comma-separated, or `none`; default: benchmark.tasks.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The folder for report, metrics and answers.")] = paths.REPORTS
    / "comparison",
) -> None:
    """Benchmark any models side by side, and write a report.

    Example: raft compare base=FOLDER sft=FOLDER mine=OWNER/NAME@REVISION.
    Exactly one model is named base. A name that is repeated is another training seed of the same method; every name but
    base must occur equally often. Changes are also counted against a model named sft.
    """
    from flows.compare import compare as compare_models

    compare_models(models, domain, tasks, output)


@app.command()
def gate(
    domain: Annotated[str | None, typer.Argument(help="A domain of params.yaml.")] = None,
    candidate: Annotated[str | None, typer.Option(help="Judge this model: FOLDER, NAME@REVISION, git:...")] = None,
    base: Annotated[str | None, typer.Option(help="What it was trained from.")] = None,
    champion: Annotated[str | None, typer.Option(help="What is in production.")] = None,
    output: Annotated[Path, typer.Option(help="The folder for gate.json and comment.md.")] = paths.REPORTS / "gate",
    replay: Annotated[Path | None, typer.Option(help="Judge again what this gate.json holds.")] = None,
) -> None:
    """Print the gate's verdict on retrain.candidate, or on --candidate.

    It releases nothing. With --candidate and --base the models are measured here. With --replay nothing is measured,
    and --candidate must be the folder that was judged. Then the exit code is 0: passed, 1: refused, 2: could not judge.
    """
    if domain is not None and candidate is None and base is None and replay is None:
        from flows.stage import run_stage

        check_names(domain)
        run_stage("gate", domain)
        return
    from flows.gate import judge_for_ci

    models = {"candidate": candidate, "base": base, "champion": champion}
    raise typer.Exit(judge_for_ci(domain, {role: name for role, name in models.items() if name}, output, replay))


@app.command()
def chat(
    candidate: Annotated[str, typer.Argument(help="A folder, an adapter, NAME@REVISION or git:REVISION:FOLDER.")],
    base: Annotated[str | None, typer.Option(help="Beside it, in the same forms; default: models.base.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Bound on an answer.")] = 256,
) -> None:
    """Talk to base and candidate side by side, as they will be served.

    Each is prompted by its own folder's chat template alone, and remembers its own answers.
    """
    from flows.chat import chat as talk

    talk(candidate, base, max_tokens)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="releases/DOMAIN, another folder or adapter, or NAME@REVISION.")],
    file: Annotated[Path, typer.Argument(help="The GGUF file to write.")],
    dtype: Annotated[Literal["float16", "float32"], typer.Option(help="Of the matrices.")] = "float16",
) -> None:
    """Write a model as a GGUF file for llama.cpp."""
    from raft_tasks.compare import base_settings, locate_model
    from raft_tasks.gguf_export import export_gguf

    with locate_model(model, [], base_settings()) as located:
        export_gguf(located, file, dtype)
    typer.echo(file)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="releases/DOMAIN, or a copy of it.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the hub; made where it is missing.")],
    public: Annotated[bool, typer.Option("--public", help="For everybody; otherwise private.")] = False,
) -> None:
    """Upload a released folder to the hub, if it is what passed the gate."""
    from flows.push import push as upload

    typer.echo(upload(folder, repository, public))


@app.command()
def retrain(force: Annotated[bool, typer.Option("--force", help="Also without new data.")] = False) -> None:
    """Fetch new data, run the pipeline, promote what passes the gate."""
    from flows.retrain import run_retrain

    run_retrain(force)


@app.command()
def rollback(
    domain: Domain, reason: Annotated[str, typer.Argument(help="Kept in the tag.")] = "rolled back by hand"
) -> None:
    """Put the previously released version back into production."""
    from flows.rollback import roll_back_domain

    check_names(domain)
    typer.echo(roll_back_domain(domain, reason))


@app.command()
def history() -> None:
    """Write reports/history.html: all retrainings, verdicts and costs."""
    from flows.history import history as read_history
    from raft_tasks.reporting.history import write_history

    write_history(read_history(Path()), paths.REPORTS)
    typer.echo(paths.REPORTS / "history.html")


@app.command()
def deploy() -> None:
    """Record the deployments of prefect.yaml on the Prefect server."""
    from flows.deploy import record_deployments

    record_deployments()


@app.command()
def worker() -> None:
    """Execute the deployments' runs until interrupted."""
    from flows.deploy import work

    work()


@app.command()
def ui(port: Annotated[int, typer.Option(help="On 127.0.0.1.")] = PREFECT_PORT) -> None:
    """Serve Prefect's page and API on this machine until interrupted."""
    from flows.server import serve

    serve(port)


@app.command()
def mirror(
    tasks: Annotated[list[str] | None, typer.Argument(help="hellaswag, piqa, ifeval, ...; default: all known.")] = None,
) -> None:
    """Put benchmarks' data into data/benchmarks, without a hub."""
    from flows.mirror import mirror as mirror_data

    for line in mirror_data(tasks or []):
        typer.echo(line)


@app.command()
def sweep(name: Annotated[str, typer.Argument(help="A sweep of sweeps/sweeps.yaml.")]) -> None:
    """Run one setting over several values, as DVC experiments."""
    from flows.sweep import sweep as run_sweep

    run_sweep(name)


@cache_app.callback()
def cache(context: typer.Context) -> None:
    """Show the cached responses by role, model and day, and the last runs."""
    if context.invoked_subcommand is None:
        from flows.cache import show

        show()


@cache_app.command("prune")
def cache_prune(
    older_than: Annotated[float | None, typer.Option(metavar="DAYS", help="Only older ones.")] = None,
    role: Annotated[str | None, typer.Option(help="Only of this role: rewrite, fuse, judge, ...")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only empty, refused or filtered ones.")] = False,
    to_megabytes: Annotated[float | None, typer.Option(help="Only the oldest, until the rest fits.")] = None,
) -> None:
    """Remove the cached responses that meet all the conditions given."""
    from flows.cache import prune as prune_calls

    prune_calls(older_than, role, failed, to_megabytes)


@app.command()
def prune(now: Annotated[bool, typer.Option("--now", help="Remove; otherwise only listed.")] = False) -> None:
    """Remove old checkpoints, responses and unreferenced versions."""
    from flows.prune import prune as prune_all

    prune_all(Path(), now)


def check_names(domain: str | None, method: str | None = None) -> None:
    """Raises InputError for a domain or a method that params.yaml does not have, with those that it has."""
    from raft_tasks.config import load_config

    config = load_config()
    if domain is not None:
        check_name("domain", domain, config.domains.keys() | config.harvest.keys())
    if method is not None:
        check_name("method", method, config.methods.keys() | {"champion"})


def main() -> None:
    """Run the command; what a person can act on is printed as `error: ...`, anything else is a bug with a traceback."""
    try:
        app()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (InputError, OperationalError) as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        dvc = sys.modules.get("dvc.exceptions")
        if dvc is None or not isinstance(error, dvc.DvcException):
            raise
        sys.exit(f"error: DVC: {error}")


if __name__ == "__main__":
    main()
