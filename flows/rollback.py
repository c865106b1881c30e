"""Put the version before the present one into production again.

    python -m flows.rollback DOMAIN [REASON]

Works on the tags of the repository that keeps them (`retrain.remote` in params.yaml, else this one): they are fetched,
one is added, and it is pushed. Nothing is retrained; whoever fetches the stage `prod` gets the earlier model.
"""

import sys
from pathlib import Path

from flows.checkout import GitFailed, git, origin
from raft_tasks.config import load_config
from raft_tasks.errors import InputError
from raft_tasks.registry import champion, roll_back


def rollback(domain: str, reason: str) -> str:
    """What is in production now, in words.

    Raises:
        InputError: an unknown domain, or nothing to go back to.
        GitFailed: if the tags cannot be fetched or pushed.
    """
    config, repository = load_config(), Path()
    if domain not in config.domains:
        raise InputError(f"got domain {domain!r}, expected one of {sorted(config.domains)}")
    address = origin(repository, config.retrain)
    elsewhere = address != str(repository.resolve())
    if elsewhere:
        git("fetch", "--quiet", "--prune", address, "+refs/tags/*:refs/tags/*")
    before = champion(repository, domain)
    back, tags = roll_back(repository, domain, reason)
    if elsewhere:
        try:
            git("push", "--quiet", "--atomic", address, *tags)
        except GitFailed:
            git("tag", "--delete", *tags)
            raise
    return f"{back} is in production again, in the place of {before}"


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(f"error: rollback takes a domain and, if you like, a reason, got {sys.argv[1:]}")
    try:
        print(rollback(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "rolled back by hand"))
    except (InputError, GitFailed) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
