"""DVC in a process that lives as long as a pipeline's run: starting it for every stage would cost a second each.

The process is `python -m flows.dvc_worker`; it reproduces the stages named on its standard input, one a line.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import dvc.cli

from flows import lock_file

EXIT_LINE = "reproduced: "  # and DVC's exit code: the last line of a stage's output


class DvcWorker:
    """Such a process, started when first needed. The commands that it runs are in its process group."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None
        self.busy = False
        self.code = 0  # DVC's for the last stage; if the process was killed, its own

    def reproduce(self, stage: str) -> Iterator[str]:
        """Reproduce `stage`; yields its output as it comes, then `code` is set."""
        if self.process is not None and self.process.poll() is not None:
            _close(self.process)  # it was killed
            self.process = None
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.dvc_worker"],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="backslashreplace",  # a stage may write any bytes
                start_new_session=True,
            )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        self.busy = True
        try:
            with suppress(BrokenPipeError):  # killed just now; its code will say so
                print(stage, file=process.stdin, flush=True)
            for line in process.stdout:
                if line.startswith(EXIT_LINE):
                    self.code = int(line.removeprefix(EXIT_LINE))
                    break
                yield line.rstrip()
            else:
                _close(process)
                self.code = process.returncode
            self.busy = False
        finally:
            if self.busy:  # an error came between; what is still to be read is not the next stage's
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                _close(process)
                self.busy = False

    def interrupt(self) -> None:
        """SIGINT to DVC, which waits for its command, and to the command. Nothing more can be reproduced."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        if self.busy:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds: float) -> None:
        """Wait for it after `interrupt`; kill it, and what it left behind, after so many seconds."""
        if self.process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if not self.busy:  # else who reads its output is about to see the end
            _close(self.process)


def _close(process: subprocess.Popen[str]) -> None:
    """Wait for its end and close its pipes."""
    with suppress(BrokenPipeError), process:
        pass


def main() -> None:
    lock_file.install()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # of a background job it is ignored, and so would stages
    with os.fdopen(os.dup(sys.stdin.fileno())) as names, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())  # for the stages, which inherit it
        for name in names:
            code = dvc.cli.main(["--wait-for-lock", "repro", "--single-item", name.strip()])
            print(f"{EXIT_LINE}{code}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
