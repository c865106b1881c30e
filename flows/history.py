"""The history of all retrainings: who won, by how much, at what cost.

Reads the repository that keeps the service's branch and tags (`retrain.remote` in params.yaml, else this one): the
commits of the branch with their verdicts (releases/<domain>.json) and costs (trailers), and the registry's tags.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from flows.checkout import TAGS, git, origin
from raft_tasks.config import load_config
from raft_tasks.errors import InputError
from raft_tasks.registry import RELEASES, Promotion, promotions
from raft_tasks.reporting.history import Event

FIELD = "\x1f"
COSTS = ("New-rows", "Questions", "Duration")
LOG = FIELD.join(["%H", "%cI", *(f"%(trailers:key={name},valueonly,separator=%x20)" for name in COSTS)])


def history(repository: Path) -> list[Event]:
    """Every judged candidate and every roll back, as `repository` and its remote know them now, oldest first.

    Raises:
        InputError: if nothing was ever retrained.
        GitFailed: if the remote does not answer.
    """
    config = load_config()
    settings = config.retrain
    address = origin(repository, settings)
    branch = f"refs/heads/{settings.branch}"
    if not git("ls-remote", address, branch, folder=repository):
        raise InputError(f"{address} has no branch {settings.branch!r}: nothing was retrained yet")
    if address != str(repository.resolve()):
        git("fetch", "--quiet", address, branch, TAGS, folder=repository)
        branch = git("rev-parse", "FETCH_HEAD", folder=repository)
    log = git("log", f"--format={LOG}", branch, "--", str(RELEASES), folder=repository)
    tagged = {domain: promotions(repository, domain) for domain in config.domains}
    commits = [line.split(FIELD) for line in log.splitlines()]
    judged = [event for commit in commits for event in _verdict_events(repository, tagged, *commit)]
    back = [event for domain, made in tagged.items() for event in _rollback_events(domain, made)]
    return sorted([*judged, *back], key=lambda event: event.when)


def _verdict_events(
    repository: Path, tagged: Mapping[str, Sequence[Promotion]], commit: str, when: str, *costs: str
) -> list[Event]:
    """The verdicts that a commit brought, and what its tags say of who won."""
    changed = git(
        "show", "--format=", "--name-only", "--diff-filter=AM", commit, "--", str(RELEASES), folder=repository
    )
    events = []
    for name in changed.splitlines():
        if not name.endswith(".json"):
            continue
        domain, verdict = Path(name).stem, json.loads(git("show", f"{commit}:{name}", folder=repository))
        versions = [str(made.version) for made in tagged.get(domain, ()) if made.version.revision == commit]
        promoted = next(iter(versions), "a version without a tag")
        winner = promoted if verdict["promoted"] else verdict["champion"] or "none"
        outcome = "promoted" if verdict["promoted"] else "kept"
        moment = datetime.fromisoformat(when).astimezone(UTC)
        events.append(Event(moment, domain, outcome, winner, verdict["reason"], commit, verdict, *costs))
    return events


def _rollback_events(domain: str, made: Sequence[Promotion]) -> list[Event]:
    """The versions that went into production once more."""
    return [
        Event(back.when.astimezone(UTC), domain, "rolled back", str(back.version), back.message, back.version.revision)
        for number, back in enumerate(made)
        if back.version in [earlier.version for earlier in made[:number]]
    ]
