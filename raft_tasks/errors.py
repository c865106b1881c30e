"""The error of the project's users, as opposed to its bugs."""

from collections.abc import Collection


class InputError(Exception):
    """What the user gave does not fit; the message says what was expected, what came, where, and what to do.

    Entry points show the message alone and end with 1; any other exception is a bug and shows its traceback.
    """


def check_name(kind: str, name: str, names: Collection[str], where: str = "params.yaml") -> None:
    """Raises InputError for a name that is none of `names`, with those."""
    if name not in names:
        raise InputError(f"got the {kind} {name!r}, expected one of {where}: {sorted(names)}")


class OperationalError(RuntimeError):
    """git, DVC, a server or a remote failed; the message says which, and what to do. Shown without a traceback."""


class Interrupted(Exception):
    """A signal ended the work at a point from which the next run goes on; the message says where.

    Entry points show the message alone and end with INTERRUPTED, so that a scheduler can tell it from a failure.
    """


INTERRUPTED = 75  # the exit code EX_TEMPFAIL of sysexits.h: try again later
