"""Seeds of single draws, by content: a resumed or grown run draws the same for the same row."""

import hashlib


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed for one draw, e.g. derive_seed(settings.seed, "fuse", row.id, round, candidate)."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8]) >> 1
