"""Two more troubles of a scheduled retraining: the machine's clock jumps while it runs, and its disk is really full.

    python benchmarks/troubles.py        root on Linux and a C compiler; about 6 minutes on two cores

The project of `twelve_weeks.py` lies on a file system of its own, which can be made too small. Every run is
`raft retrain`. In one of them shifted_clock.c gives all processes (the flow, its Prefect server, stages, DVC
and git) a wall clock that jumps three days back in the middle of the pipeline, and a month forward later. Ends with an
error where something that must hold does not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from weeks_service import Service

DAY = 86400
# seconds after the pipeline began, and by how many the clock is off from then on
JUMPS = ((20.0, -3 * DAY), (60.0, 30 * DAY))
ROOM = "3g"
PROMOTED = "Promoted, after "
TIGHT = 6 * 2**20  # bytes that are left: less than a model


@contextmanager
def file_system() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "raft-troubles", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def retrain(
    service: Service, environment: dict[str, str], jumps: Sequence[tuple[float, int]] = ()
) -> tuple[str, float]:
    """Run it to its end; what it said, and its seconds. The clock jumps once the pipeline is at work."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "retrain"],
        cwd=service.folder,
        env={key: value for key, value in service.environment().items() if key != "PREFECT_API_URL"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines, waiting = [], []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
        if line.endswith("] pipeline\n"):
            for seconds, shift in jumps:
                file = Path(environment["CLOCK_SHIFT"])
                waiting.append(threading.Timer(seconds, file.write_text, [str(shift)]))
                waiting[-1].start()
    process.wait()
    for timer in waiting:
        assert timer.finished.is_set(), "the run was over before the clock had jumped"
    return "".join(lines), time.monotonic() - began


def check(service: Service, said: str, outcome: str) -> None:
    """The run said `outcome`, and neither git nor DVC has anything to complain about."""
    if outcome not in said:
        sys.exit(f"expected: {outcome}")
    service.git("fsck", "--strict")
    tags = service.git("tag", "--list", "raft-archive@*").split()
    for command in (["fetch", "--all-tags"], ["status", "--cloud", "--all-tags"]):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command], cwd=service.folder, capture_output=True, text=True, check=True
        )
        said = done.stdout.strip()
    if "in sync" not in said:
        sys.exit(f"dvc status --cloud: {said}")
    print(
        f"-- {outcome.rstrip()}; git fsck, dvc fetch and dvc status --cloud of {len(tags)} version(s) are clean\n",
        flush=True,
    )


def main() -> None:
    if os.geteuid():
        sys.exit("error: this needs root, for a file system of its own")
    with file_system() as folder:
        service = Service(folder)
        print("# the first data")
        said, _ = retrain(service, {})
        check(service, said, PROMOTED)

        print("# 4 new facts; the clock jumps three days back, then a month forward")
        service.facts(4)
        clock, library = folder / "clock", folder / "clock.so"
        clock.write_text("0")
        source = Path(__file__).with_name("shifted_clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
        fake = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(clock)}
        said, seconds = retrain(service, fake, JUMPS)
        check(service, said, PROMOTED)
        (reported,) = re.findall(r"Promoted, after ([\d.]+) s", said)
        if abs(float(reported) - seconds) > 10:
            sys.exit(f"it took {seconds:.0f} s, and says {reported}")

        print("# 4 new facts; the disk is full")
        service.facts(4)
        used = os.statvfs(folder)
        resize(folder, str((used.f_blocks - used.f_bfree) * used.f_frsize + TIGHT))
        said, _ = retrain(service, {})
        check(service, said, "a checkpoint could not be written")

        print("# there is room again")
        resize(folder, ROOM)
        said, _ = retrain(service, {})
        check(service, said, PROMOTED)
        print("every invariant held")


if __name__ == "__main__":
    main()
