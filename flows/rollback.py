"""Put the version before the present one into production again.

Works on the registry's tags (raft-...) in the repository that keeps them (`retrain.remote` in params.yaml, else this
one): they are fetched, those that were never pushed go, one is added, and it is pushed. Nothing is retrained; whoever
fetches the stage `prod` gets the earlier model.
"""

from pathlib import Path

from flows.checkout import TAGS, GitFailed, git, origin
from raft_tasks.config import load_config
from raft_tasks.registry import champion, roll_back


def roll_back_domain(domain: str, reason: str) -> str:
    """What is in production now, in words.

    Raises:
        InputError: there is nothing to go back to.
        GitFailed: if the tags cannot be fetched or pushed.
    """
    repository = Path()
    address = origin(repository, load_config().retrain)
    elsewhere = address != str(repository.resolve())
    if elsewhere:
        git("fetch", "--quiet", "--prune", address, TAGS)
    before = champion(repository, domain)
    back, tag = roll_back(repository, domain, reason)
    if elsewhere:
        try:
            git("push", "--quiet", "--atomic", address, tag)
        except GitFailed:
            git("tag", "--delete", tag)
            raise
    return f"{back} is in production again, in the place of {before}"
