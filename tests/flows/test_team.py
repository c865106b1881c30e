"""What a team runs in the place of SQLite and a local folder: Prefect on PostgreSQL, the DVC remote on SSH.

Both servers are the tests' own, on 127.0.0.1, and end with them; the machine's configuration is left alone.
Left out unless asked for: `make team`.
"""

# ruff: noqa: F811  # fixtures of test_retrain
import asyncio
import getpass
import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from project_copies import ROOT
from retrain_repository import commit_all
from test_kill import wait_for
from test_retrain import drop, service  # noqa: F401

from flows.checkout import git
from flows.environment import PIPELINE_PID
from flows.server import free_port, wait_until_healthy
from raft_tasks.artifacts import digest_path
from raft_tasks.errors import OperationalError
from raft_tasks.registry import champion

pytestmark = pytest.mark.team
DVC = [sys.executable, "-m", "dvc"]


def postgres_programs():
    """The folder of the newest PostgreSQL's programs; skips where Debian's package `postgresql` is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not found:
        pytest.skip("no /usr/lib/postgresql/*/bin/initdb here: apt-get install postgresql")
    return found[-1].parent


def user():
    """Who the servers run as: PostgreSQL refuses root, and sshd without root needs no folder of the system's."""
    if os.geteuid():
        return getpass.getuser()
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


@pytest.fixture(scope="module")
def home():
    """A folder of that user; pytest's own ones are closed to others."""
    with tempfile.TemporaryDirectory(prefix="raft-team-") as folder:
        shutil.chown(folder, user())
        yield Path(folder)


def as_user(*command):
    """Run `command` as that user, to its end."""
    identity = pwd.getpwnam(user())
    rights = {} if os.geteuid() else {"user": identity.pw_uid, "group": identity.pw_gid, "extra_groups": []}
    done = subprocess.run([str(word) for word in command], cwd="/", capture_output=True, text=True, **rights)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def as_user_meanwhile(log, *command):
    """`command` runs as that user; what it says goes to `log`."""
    identity = pwd.getpwnam(user())
    rights = {} if os.geteuid() else {"user": identity.pw_uid, "group": identity.pw_gid, "extra_groups": []}
    with log.open("w") as said:
        words = [str(word) for word in command]
        process = subprocess.Popen(words, cwd="/", stdout=said, stderr=said, stdin=subprocess.DEVNULL, **rights)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def database(home, tmp_path_factory):
    """The address of an empty database `prefect` in a PostgreSQL cluster of our own."""
    programs, port, password = postgres_programs(), free_port(), secrets.token_hex(8)
    secret = home / "password"
    secret.write_text(password)
    shutil.chown(secret, user())
    login = ("--username=raft", "--auth=scram-sha-256", f"--pwfile={secret}")
    as_user(programs / "initdb", f"--pgdata={home}/data", *login, "--no-sync", "--encoding=UTF8", "--locale=C")
    settings = ("listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=", "fsync=off")
    options = [word for setting in settings for word in ("-c", setting)]
    log = tmp_path_factory.mktemp("postgres") / "log"
    with as_user_meanwhile(log, programs / "postgres", "-D", home / "data", *options) as server:
        ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        wait_for(lambda: server.poll() is not None or subprocess.run(ready).returncode == 0, "PostgreSQL's start")
        assert server.poll() is None, log.read_text()
        address = f"postgresql://raft:{password}@127.0.0.1:{port}"
        ask(f"{address}/postgres", "CREATE DATABASE prefect")
        yield f"{address}/prefect"


def ask(address, query):
    """PostgreSQL's answer, as a list of rows."""
    import asyncpg

    async def answer():
        connection = await asyncpg.connect(address)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(answer())


@contextmanager
def prefect_on(database, home):
    """The URL of our Prefect server, its database that one."""
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.replace("postgresql://", "postgresql+asyncpg://"),
        PIPELINE_PID: str(os.getpid()),
    }
    command = [sys.executable, "-m", "flows.cli", "ui", "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}/api"
    try:
        wait_until_healthy(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def prefect_api(database, tmp_path_factory):
    """What test_retrain's service talks to."""
    home = tmp_path_factory.mktemp("prefect")
    with prefect_on(database, home) as url:
        yield url
    assert not list(home.glob("*.db"))  # no SQLite beside it


@pytest.fixture
def ssh(home, tmp_path):
    """An SSH server of our own: returns (start it, its folder's address, the key)."""
    if not Path("/usr/sbin/sshd").exists():
        pytest.skip("no /usr/sbin/sshd here: apt-get install openssh-server")
    if importlib.util.find_spec("dvc_ssh") is None:
        pytest.skip("no dvc-ssh here: pip install -e '.[ssh]'")
    port, own = free_port(), Path(tempfile.mkdtemp(dir=home))
    for name, folder in (("host", own), ("key", tmp_path)):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(tmp_path / "key.pub", own / "authorized_keys")
    (own / "remote").mkdir()
    (own / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {own}/host\nAuthorizedKeysFile {own}/authorized_keys\n"
        "PidFile none\nUsePAM no\nStrictModes no\nAuthenticationMethods publickey\nSubsystem sftp internal-sftp\n"
    )
    for path in (own, *own.iterdir()):
        shutil.chown(path, user())

    @contextmanager
    def running():
        command = ("/usr/sbin/sshd", "-D", "-e", "-f", own / "sshd_config")
        with as_user_meanwhile(tmp_path / "sshd.log", *command) as server:
            begun = f"listening on 127.0.0.1 port {port}"
            wait_for(
                lambda: server.poll() is not None or begun in (tmp_path / "sshd.log").read_text(), "the SSH server"
            )
            assert server.poll() is None, (tmp_path / "sshd.log").read_text()
            yield

    return running, f"ssh://{user()}@127.0.0.1:{port}{own}/remote", tmp_path / "key"


def dvc(folder, *arguments):
    done = subprocess.run([*DVC, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def use_ssh(folder, address, key):
    """As docs/guides/operations.md says it: the remote for all, the key for oneself."""
    dvc(folder, "remote", "add", "-f", "-d", "team", address)
    dvc(folder, "remote", "modify", "--local", "team", "keyfile", str(key))


def test_a_retrain_with_its_runs_in_postgresql_and_its_models_behind_ssh(
    service, repository, database, prefect_api, ssh, tmp_path
):
    running, address, key = ssh
    use_ssh(repository, address, key)
    commit_all(repository, "the team's remote")
    with running():
        assert service() == ("Promoted", "archive: better")

        first = champion(repository, "archive")
        colleague = tmp_path / "colleague"
        git("clone", "-q", "--branch", "retrain", str(repository), str(colleague))
        dvc(colleague, "remote", "modify", "--local", "team", "keyfile", str(key))
        dvc(colleague, "pull")
        assert digest_path(colleague / "artifacts") == digest_path(repository / ".raft/checkout/artifacts")
        dvc(repository, "artifacts", "get", str(colleague), "raft-archive", "--rev", "v1.0.0", "-o", "model")
        assert digest_path(repository / "model") == digest_path(repository / ".raft/checkout/artifacts/model")

    # While the remote is away nothing changes; as soon as it answers, the next run promotes what is new.
    drop(repository, "week2.jsonl", "{}\n")
    with pytest.raises(OperationalError, match=r"`dvc pull` failed: .*does the DVC remote 'team' answer"):
        service()
    assert champion(repository, "archive") == first
    with running():
        assert service() == ("Promoted", "archive: better")
        assert str(champion(repository, "archive")) == "raft-archive@v2.0.0"
        git("fetch", "-q", folder=colleague)
        git("reset", "-q", "--hard", "origin/retrain", folder=colleague)
        dvc(colleague, "pull", "--force")
        assert digest_path(colleague / "artifacts") == digest_path(repository / ".raft/checkout/artifacts")
        assert "in sync" in dvc(colleague, "status", "--cloud")

    runs = ask(
        database,
        "SELECT flow_run.state_name FROM flow_run JOIN flow ON flow.id = flow_run.flow_id "
        "WHERE flow.name = 'retrain' ORDER BY flow_run.start_time",
    )
    assert [name for (name,) in runs] == ["Promoted", "Failed", "Promoted"]


def test_another_server_on_the_same_database_knows_the_runs(database, prefect_api, tmp_path):
    from prefect import flow
    from prefect.client.orchestration import get_client

    from flows.server import prefect_at

    @flow(name="kept")
    def kept():
        return 1

    with prefect_at(prefect_api):
        assert kept() == 1
    with (
        prefect_on(database, tmp_path / "home") as other,
        prefect_at(other),
        get_client(sync_client=True) as client,
    ):
        names = {found.id: found.name for found in client.read_flows()}
        runs = [run for run in client.read_flow_runs() if names[run.flow_id] == "kept"]
        assert [run.state.name for run in runs] == ["Completed"]
