"""Digests of large files that rarely change, such as models: read again only where size, time or inode differ."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from filelock import FileLock

from raft_tasks.artifacts import atomic_file, digest_file, digest_path

RECENT_SECONDS = 2.0  # a file that was written just now may be written once more within the clock's resolution


class FileDigests:
    """`of(path)` equals `digest_path(path)`; what was read is kept in the JSON file `store` from one use to the next.

    with FileDigests(Path(".cache/digests.json")) as digests:
        digests.of(Path("models/base"))
    """

    def __init__(self, store: Path, write: bool = True) -> None:
        self.store, self.write = store, write
        self.entries: dict[str, list[int | str]] = {}  # path -> size, modification time in ns, inode, digest

    def __enter__(self) -> FileDigests:
        try:
            self.entries = json.loads(self.store.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there yet, or damaged: everything is read
            self.entries = {}
        self.stored = dict(self.entries)
        return self

    def __exit__(self, *_: object) -> None:
        if self.write and self.entries != self.stored:
            # a repository and its retrain checkout share it
            with FileLock(f"{self.store}.lock"), atomic_file(self.store) as partial:
                partial.write_text(json.dumps(self.entries), encoding="utf-8")

    def of(self, path: Path) -> str:
        """As `digest_path`."""
        return digest_path(path, self._of_file)

    def _of_file(self, path: Path) -> str:
        name, state = str(path.resolve()), os.stat(path)
        key: list[int | str] = [state.st_size, state.st_mtime_ns, state.st_ino]
        if self.entries.get(name, [])[:3] != key:
            sha256 = digest_file(path)
            if time.time() - state.st_mtime < RECENT_SECONDS:
                self.entries.pop(name, None)
                return sha256
            self.entries[name] = [*key, sha256]
        return str(self.entries[name][3])
