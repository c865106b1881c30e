"""The error of the project's users, as opposed to its bugs."""


class InputError(Exception):
    """What the user gave does not fit; the message says what was expected, what came, where, and what to do.

    Entry points show the message alone and end with 1; any other exception is a bug and shows its traceback.
    """
