"""The gate of a finished pipeline: check the candidate, interpolate a near miss, release what passed.

`raft gate DOMAIN` only prints the verdict. `gate_models` judges models of any origin outside the service.
"""

import sys
import traceback
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput

from flows import paths
from flows.benchmark import CHAMPION, suite_of
from flows.compare import domain_suite, run_folders
from flows.judge import add_panel_verdicts
from flows.stage import Progress
from raft_tasks.artifacts import atomic_file, digest, iter_rows, read_rows, read_yaml, write_json, write_rows
from raft_tasks.benchmark import benchmark_model, merge_model
from raft_tasks.compare import locate_model
from raft_tasks.config import Config, Interpolate, Model, load_config
from raft_tasks.errors import InputError, OperationalError, check_name
from raft_tasks.evaluation.evidence import NAME, Evidence, digest_model, replay, write_evidence
from raft_tasks.evaluation.gate import Verdict
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.evaluation.prompting import compare_prompts
from raft_tasks.gate import REPEAT, fidelity_rate, measure, release, repeat_settings, size_and_latency
from raft_tasks.registry import champion, released
from raft_tasks.reporting.origin import data_versions
from raft_tasks.schemas import Fused, ItemResult, Judged, end_with

POLL_SECONDS = 5  # between two looks for a person's answer


def gate_candidate(config: Config, domain: str) -> Verdict:
    """The verdict on the candidate that params name; one that passed lies at releases/<domain>, under DVC.

    The verdict is also written to releases/<domain>.json.

    Raises:
        InputError: if the pipeline has not run.
    """
    verdict, model, evidence = find_verdict(config, domain)
    if verdict.promoted and config.gate.approval is not None:
        verdict = request_approval(verdict, config.gate.approval.timeout_hours)
    if verdict.promoted:
        card = (model / "README.md").read_text(encoding="utf-8")
        data = [f"- `{path}`: {version}" for path, version in data_versions(paths.LOCK).items()]
        card = "\n".join([card, "## Release", "", verdict.markdown(), "", "Data:", "", *data, ""])
        release(config.base.at(model), card, evidence, verdict, released(domain), config.retrain.release)
    write_verdict(verdict)
    return verdict


class Approval(RunInput):
    """What the run's page asks a person."""

    approve: bool
    name: str


def request_approval(verdict: Verdict, hours: float) -> Verdict:
    """Pause the run until a person has answered on its page.

    Raises:
        OperationalError: after `hours`. Prefect fails a run that waited too long, so nothing may be pushed then.
    """
    form = Approval.with_initial_data(description=verdict.markdown())
    key = f"approve-{verdict.domain}"
    try:
        answer = pause_flow_run(wait_for_input=form, timeout=int(hours * 3600), poll_interval=POLL_SECONDS, key=key)
    except FlowPauseTimeout as error:
        raise OperationalError(
            f"nobody approved {verdict.candidate} for {verdict.domain} within {hours:g} hours; nothing was changed, "
            "and the next run asks again"
        ) from error
    return verdict if answer.approve else replace(verdict, refused_by=answer.name)


def find_verdict(config: Config, domain: str) -> tuple[Verdict, Path, Evidence]:
    """The verdict, the folder of the model that it is about, and what it rests on.

    A near miss is interpolated first as `gate.recover` says, and is benchmarked and checked again.
    """
    candidate = config.retrain.candidate
    trained = paths.trained(domain, candidate.method, candidate.seed)
    benchmark = paths.benchmark(domain, candidate.method, candidate.seed)
    votes: list[Judged] | None = None
    if domain in config.run.judged:
        votes = [
            row.model_copy(update={"model": "candidate"}) if row.model == benchmark.name else row
            for row in read_rows(paths.judged(domain) / "votes.jsonl", Judged)
        ]
    evidence = _measure(config, domain, trained, benchmark / "items.jsonl", votes)
    verdict = evidence.judge()
    if not verdict.near_miss or config.gate.recover is None:
        return verdict, trained, evidence
    trained, items, coefficient = _interpolate(config, config.gate.recover, domain, trained)
    if votes is not None:
        votes = [row for row in votes if row.model != "candidate"]
    evidence = _measure(config, domain, trained, items, votes)
    return replace(evidence.judge(), coefficient=coefficient), trained, evidence


def write_verdict(verdict: Verdict) -> None:
    """releases/<domain>.json: what git keeps of every check."""
    write_json(
        released(verdict.domain).with_suffix(".json"),
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "candidate": verdict.candidate,
            "champion": verdict.champion,
            "promoted": verdict.promoted,
            "coefficient": verdict.coefficient,
            "reason": verdict.reason,
            "checks": verdict.rows(),
        },
    )


def _measure(config: Config, domain: str, trained: Path, items: Path, votes: list[Judged] | None) -> Evidence:
    """What decides on the model in `trained`, whose outcomes are `items`; `votes`: a panel's, of a judged domain."""
    production, candidate = champion(Path(), domain), config.retrain.candidate
    files = {"candidate": items, "base": paths.benchmark(domain, None, None) / "items.jsonl"}
    names = {"candidate": paths.benchmark(domain, candidate.method, candidate.seed).name, "base": "base"}
    models = {"candidate": config.base.at(trained), "base": config.base}
    if production is not None:
        held = (read_yaml(paths.CHAMPIONS / "domains.yaml").get("versions") or {}).get(domain)
        if held != str(production):
            raise InputError(
                f"{production} is in production, and {paths.champion(domain)} holds {held or 'none'}; `raft retrain "
                "--force` fetches and measures it"
            )
        files["champion"] = paths.benchmark(domain, CHAMPION, None) / "items.jsonl"
        names["champion"] = str(production)
        models["champion"] = config.base.at(paths.champion(domain))
    missing = [str(path) for path in files.values() if not path.exists()]
    if missing:
        raise InputError(
            f"the gate needs the outcomes of the benchmarks, {missing} are not there; run the pipeline first"
        )
    rows = {role: read_rows(path, ItemResult) for role, path in files.items()}
    return _complete(config, suite_of(config, domain, "test"), models, names, rows, votes)


def _complete(
    config: Config,
    suite: Suite,
    models: dict[str, Model],
    names: dict[str, str],
    rows: dict[str, list[ItemResult]],
    votes: list[Judged] | None,
) -> Evidence:
    """The evidence on candidate, base and perhaps champion, whose outcomes are `rows`: the rest is measured here.

    Args:
        names: by role, as are models and outcomes: what the verdict calls each.
        votes: a panel's, on models by role; None where the domain is not judged.
    """
    if config.gate.noise is not None:
        second = repeat_settings(config.gate.noise, models["candidate"], suite)
        rows = rows | {REPEAT: evaluate(*second, Progress(f"candidate, {REPEAT}", 0, "items"))[1]}
        names = names | {REPEAT: f"{names['candidate']} {REPEAT}"}
    if votes is not None:
        rows, _ = add_panel_verdicts(suite.domain, rows, votes, config)
    measured = {role: measure(names[role], items) for role, items in rows.items()}
    questions = [end_with(row.history, row.question) for row in suite.rows][: config.gate.latency_items]
    timed = {role: models[role] for role in ("candidate", "base")}
    for role, (size, seconds) in size_and_latency(timed, questions, config.benchmark.max_new_tokens).items():
        measured[role] = replace(measured[role], bytes=size, seconds=seconds)
    prompts = compare_prompts(models["candidate"], models["base"])
    fused = paths.fused(suite.domain, config.run.rows)
    inputs = {role: digest_model(model) for role, model in models.items()}
    inputs["questions"] = {"rows": digest(suite.rows), "benchmark": digest(suite.settings.model_dump(mode="json"))}
    return Evidence(
        suite.domain,
        config.gate,
        replace(measured["candidate"], prompting=prompts),
        measured["base"],
        measured.get("champion"),
        fidelity_rate(iter_rows(fused, Fused), config.domains[suite.domain].checks) if fused.exists() else None,
        inputs,
        measured.get(REPEAT),
    )


def _interpolate(config: Config, after: Interpolate, domain: str, trained: Path) -> tuple[Path, Path, float]:
    """The interpolated model, its outcomes on the benchmarks, and how much of the change it keeps."""
    folder, label = paths.near_miss(domain), f"gate@{domain}"
    validation = suite_of(config, domain, "validation")
    merged = merge_model(trained, config.base, after, validation, folder, Progress(label, 0, "models"))
    suite = suite_of(config, domain, "test")
    _, items = benchmark_model(config.base.at(folder / "model"), suite, Progress(label, 0, "items"))
    write_rows(folder / "items.jsonl", items)
    return folder / "model", folder / "items.jsonl", float(merged["coefficient"])


@flow
def gate(domain: str) -> None:
    config = load_config()
    check_name("domain", domain, config.run.domains, "run.domains")
    print(find_verdict(config, domain)[0].markdown(), flush=True)


def judge_for_ci(domain: str | None, models: dict[str, str], output: Path, replayed: Path | None) -> int:
    """Print the verdict of `gate_models`, or of `replayed`; returns the exit code.

    0: passed; 1: refused; 2: could not judge, by whatever went wrong.
    """
    try:
        if replayed is not None:
            folder = Path(models["candidate"]) if "candidate" in models else None
            verdict = replay(replayed, folder)[1]
        elif domain is None or not {"candidate", "base"} <= set(models):
            raise InputError(
                "expected a domain (its retrain.candidate is judged), a domain with --candidate and --base, or "
                "--replay FILE"
            )
        else:
            verdict = gate_models(models, domain, output)
    except (InputError, OperationalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception:  # Python's own exit code for it would say refused
        traceback.print_exc()
        return 2
    print(verdict.markdown(), flush=True)
    return 0 if verdict.promoted else 2 if verdict.undecidable else 1


def gate_models(sources: dict[str, str], domain: str, output: Path) -> Verdict:
    """Measure and judge models of any origin, here and now; writes `output`/gate.json and `output`/comment.md.

    Args:
        sources: candidate, base and perhaps champion, each in a form of `raft compare`.

    Raises:
        InputError: a model, the domain or its held-out questions are not there.
    """
    config = load_config()
    check_name("domain", domain, config.domains)
    suite = domain_suite(config, domain, config.benchmark.tasks)
    votes: list[Judged] | None = [] if domain in config.run.judged else None
    with ExitStack() as located:
        folders = run_folders(domain)
        models = {
            role: located.enter_context(locate_model(source, folders, config.base)) for role, source in sources.items()
        }
        rows = {role: evaluate(model, suite, Progress(role, 0, "items"))[1] for role, model in models.items()}
        evidence = _complete(config, suite, models, sources | {"base": "base"}, rows, votes)
    verdict = evidence.judge()
    write_evidence(output / NAME, evidence, verdict)
    with atomic_file(output / "comment.md") as partial:
        partial.write_text(comment(evidence, verdict), encoding="utf-8")
    return verdict


def comment(evidence: Evidence, verdict: Verdict) -> str:
    """The verdict for a pull request, in Markdown."""
    result = "passed" if verdict.promoted else "could not judge" if verdict.undecidable else "refused"
    files = [
        f"- {role}, `{name}`: `{value[:16]}`"
        for role, digests in evidence.inputs.items()
        for name, value in digests.items()
        if role == "questions" or name.endswith((".safetensors", ".jinja")) or "revision" in digests
    ]
    title = f"### Gate of `{evidence.domain}`: {result}"
    details = ["<details><summary>Inputs (SHA-256)</summary>", "", *files, "", "</details>"]
    return "\n".join([title, "", f"{verdict.reason}.", "", verdict.table(), "", *details, ""])
