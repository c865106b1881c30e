"""A process that has imported what stages need, and forks a child for each `raft stage` of one pipeline's run.

Importing torch, transformers and Prefect takes seconds in every process. With a host it is done once: the command
`raft stage ...` connects to the socket that RAFT_STAGE_HOST names, passes its arguments, environment and standard
streams, forwards signals, and ends as the child ends. Without a host, or where the host refuses, it runs by itself.

A child equals a fresh process: the host has the client's environment and folder (else it refuses), a single thread, no
CUDA context and no thread pool. It lives in a session of its own and dies with its client, the host or the pipeline.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

HOST = "RAFT_STAGE_HOST"  # the path of the host's socket, set for what a pipeline starts
PIPELINE_PID = "RAFT_PIPELINE_PID"  # set for the processes that a pipeline starts
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# What may differ between host and client: no library reads it, or only the stage's own processes do.
INDIVIDUAL = ("_", "DVC_ROOT", "DVC_STAGE", "OLDPWD", "PWD", PIPELINE_PID, "SHLVL", HOST)
# For the host alone: OpenBLAS and Arrow's allocator start threads when they are loaded, and `torch.cuda.is_available`
# initialises the driver, after which no child could use it.
SINGLE_THREADED = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
IMPORTS = (  # of every stage; some of these Prefect and the configuration import when they are used
    "flows.cli",
    "flows.stage",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.utilities.visualization",
    "anyio._backends._asyncio",
    "fastapi",
    "ruamel.yaml",
)
WITH_MODELS = ("anchors", "rewrite", "semantic_filter", "fuse", "distill", "benchmark", "analyse")
MODEL_IMPORTS = (
    "transformers.generation",
    "sentence_transformers",
    "lm_eval.evaluator",
    "peft",
    "raft_tasks.training.train",
    "raft_tasks.training.merging",
    "raft_tasks.evaluation.chat_model",
)
SERVE = "import sys; from flows.stage_host import serve; serve(int(sys.argv[1]), sys.argv[2:])"
PR_SET_PDEATHSIG = 1  # of prctl(2)


def hand_over() -> None:
    """Let the host run this process's `raft stage ...`, and end as that ends; return where no host does it."""
    if sys.argv[1:2] != ["stage"] or HOST not in os.environ:
        return
    path = os.environ.pop(HOST)  # no process of the stage hands over again
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError:
            return  # its host has ended
        handlers = {number: signal.getsignal(number) for number in FORWARDED}
        for number, handler in handlers.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, lambda received, _: connection.sendall(bytes([received])))
        code = _wait(connection, [number for number, handler in handlers.items() if handler == signal.SIG_IGN])
        if code is None:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            return
    if code < 0:  # by a signal, which DVC is to see
        with suppress(OSError):  # SIGKILL cannot be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _wait(connection: socket.socket, ignored: list[int]) -> int | None:
    """The child's exit code, negative for a signal; None where the host refuses."""
    mask = os.umask(0o077)
    os.umask(mask)
    request = {"arguments": sys.argv, "environment": dict(os.environ), "folder": os.getcwd(), "code": __file__}
    data = json.dumps(request | {"umask": mask, "ignored": ignored}).encode()
    pid = 0
    with connection.makefile("rb") as replies:
        with suppress(BrokenPipeError):  # the host was killed just now
            socket.send_fds(connection, [struct.pack("!I", len(data))], [0, 1, 2])
            connection.sendall(data)
        for reply in replies:
            kind, value = reply.decode().rstrip("\n").split(" ", 1)
            if kind == "refused":
                print(f"raft stage: the stage host does not serve it, it runs by itself: {value}", flush=True)
                return None
            if kind == "exit":
                return int(value)
            pid = int(value)
    if pid:  # the child died with the host; what it started may not have
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    print("error: the stage host was killed, and this stage with it; run the same command again", file=sys.stderr)
    return 1


def stage_environment(api_url: str, threads: int) -> dict[str, str]:
    """The environment of a pipeline's stages."""
    return {
        **os.environ,
        PIPELINE_PID: str(os.getpid()),
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",  # whose `raft` the stages run
        "PREFECT_API_URL": api_url,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


@contextmanager
def stage_host(environment: dict[str, str], stages: Iterable[str] = ()) -> Iterator[dict[str, str]]:
    """Keep a host as long as this context, or use the one of RAFT_STAGE_HOST; yields `environment` with its address.

    Args:
        stages: names whose imports it does while nothing is asked of it; the others' when they are asked for.
    """
    if HOST in os.environ or sys.platform != "linux":  # elsewhere a fork without exec is unsafe, or there is none
        yield environment
        return
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="raft-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/host")
            listener.listen()
            number = listener.fileno()
            host = subprocess.Popen(
                [sys.executable, "-P", "-c", SERVE, str(number), *stages],
                env={name: value for name, value in environment.items() if name != PIPELINE_PID},
                stdin=subprocess.PIPE,  # its end is the pipeline's
                stdout=subprocess.DEVNULL,
                pass_fds=[number],
                start_new_session=True,
            )
        try:
            yield {**environment, HOST: f"{folder}/host"}
        finally:
            host.kill()
            host.wait()
            assert host.stdin is not None
            host.stdin.close()


def serve(number: int, stages: list[str]) -> None:
    """The host, listening on the file descriptor `number`, until its standard input ends; in a child, the stage."""
    listener = socket.socket(fileno=number)
    environment = dict(os.environ)
    os.environ.update(SINGLE_THREADED)
    children: dict[int, socket.socket] = {}
    request = _fork_stages(listener, environment, children, _modules(*stages))
    if request is None:  # the pipeline has ended
        import shutil

        for pid in children:
            _kill_group(pid)
        shutil.rmtree(os.path.dirname(listener.getsockname()), ignore_errors=True)
    else:
        _run_stage()


def _fork_stages(
    listener: socket.socket, environment: dict[str, str], children: dict[int, socket.socket], ahead: list[str]
) -> dict[str, Any] | None:
    """Fork a child for every client; returns its request in the child, None in the host. Imports `ahead` when idle."""
    import select

    host = os.getpid()
    imported: dict[str, list[int]] = {}
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    while True:
        ready, _, _ = select.select([listener, woken, sys.stdin], [], [], 0 if ahead else None)
        if not ready:
            with suppress(Exception):  # a stage that needs it will say it
                _import([ahead.pop(0)], imported)
        if sys.stdin in ready:
            return None
        if woken in ready:
            woken.recv(4096)
            _report(children)
        if listener not in ready:
            continue
        connection, _ = listener.accept()
        try:
            connection.settimeout(10)  # a client sends all at once
            request, streams = _receive(connection)
            connection.settimeout(None)
        except (OSError, ValueError):  # it died meanwhile
            connection.close()
            continue
        reason = _reason_to_refuse(request, environment, imported)
        pid = -1 if reason else os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for other in (listener, woken, wake, *children.values()):
                other.close()
            _become(request, streams, connection, host)
            return request
        for stream in streams:
            os.close(stream)
        _reply(connection, f"refused {reason}" if reason else f"pid {pid}")
        if reason:
            connection.close()
        else:
            children[pid] = connection


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    header, streams, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as stream:
        size = struct.unpack("!I", header)[0]
        return json.loads(stream.read(size)), streams


def _reply(connection: socket.socket, line: str) -> None:
    with suppress(OSError):  # the client is gone, and the child ends with it
        connection.sendall(f"{line}\n".encode())


def _report(children: dict[int, socket.socket]) -> None:
    """Tell the clients of the children that have ended."""
    for pid, connection in list(children.items()):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            continue
        _kill_group(pid)  # what it left behind; before the number is free for others
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        _reply(connection, f"exit {code}")
        connection.close()
        del children[pid]


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _state(file: str) -> list[int]:
    """What an edit changes."""
    try:
        state = os.stat(file)
    except OSError:
        return []
    return [state.st_mtime_ns, state.st_size, state.st_ino]


def _modules(*stages: str) -> list[str]:
    with_models = MODEL_IMPORTS if not {*WITH_MODELS}.isdisjoint(stages) else ()
    return [*IMPORTS, *(f"flows.{stage}" for stage in stages), *with_models]


def _import(modules: list[str], imported: dict[str, list[int]]) -> None:
    """Import the modules; `imported`, {source file of the project: its state}, grows by what came with them."""
    import warnings
    from importlib import import_module

    from raft_tasks.code_digest import code_digest

    try:
        with warnings.catch_warnings(action="ignore"):
            for module in modules:
                import_module(module)
                if module.startswith("flows.") and module not in IMPORTS:  # a stage
                    code_digest(module)  # what it parses, no child parses again
    finally:
        for name, loaded in list(sys.modules.items()):
            file = loaded.__file__ if name.partition(".")[0] in ("flows", "raft_tasks") else None
            if file is not None:
                imported.setdefault(file, _state(file))


def _reason_to_refuse(
    request: dict[str, Any], environment: dict[str, str], imported: dict[str, list[int]]
) -> str | None:
    """Why a child would not equal a fresh process, if so; imports what the stage needs.

    Args:
        imported: {source file of the project: its state}; grows.
    """
    import gc

    if [request["folder"], request["code"]] != [os.getcwd(), __file__]:
        return f"the host works in {os.getcwd()} with {__file__}"
    names = {*environment, *request["environment"]} - {*INDIVIDUAL}
    differing = sorted(name for name in names if environment.get(name) != request["environment"].get(name))
    if differing:
        return f"{', '.join(differing)} of the environment differ from the host's"
    changed = [file for file, state in imported.items() if _state(file) != state]
    if changed:
        return f"{', '.join(sorted(changed))} changed since the host imported it"
    try:
        _import(_modules(*request["arguments"][2:3]), imported)
    except Exception as error:  # the stage by itself will say it where it matters
        return " ".join(f"{type(error).__name__}: {error}".split())
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"the imports have started {threads - 1} threads"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "the imports have initialised CUDA"
    gc.freeze()  # what is imported stays; a child's collector need not look at it, nor copy its pages
    return None


def _become(request: dict[str, Any], streams: list[int], connection: socket.socket, host: int) -> None:
    """Make this child what the client would be."""
    import ctypes
    import threading

    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != host:
        os._exit(1)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.umask(request["umask"])
    for name in os.environ.keys() - request["environment"].keys():
        del os.environ[name]
    os.environ.update(request["environment"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    sys.argv[:] = request["arguments"]
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # the fork seeds Python's own generator
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    cores = len(os.sched_getaffinity(0))
    threads = int(os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or cores)
    threads = min(threads, cores)  # as OpenBLAS does where it is loaded
    if threads > 1 and "threadpoolctl" in sys.modules:
        sys.modules["threadpoolctl"].threadpool_limits(threads, "blas")
    threading.Thread(target=_follow, args=(connection,), daemon=True).start()


def _run_stage() -> NoReturn:
    """`raft stage`, and the end of its process as Python ends one, but for freeing the host's heap, a second's work."""
    import atexit
    import threading

    from flows.cli import main

    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]  # these two are what the interpreter calls
    atexit._run_exitfuncs()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _follow(connection: socket.socket) -> None:
    """Pass on the signals that the client gets, SIGINT to the whole group as a terminal does; end with the client."""
    while number := connection.recv(1):
        if number[0] == signal.SIGINT:
            os.killpg(0, signal.SIGINT)
        else:
            os.kill(os.getpid(), number[0])
    os.killpg(0, signal.SIGKILL)
