"""A project where much is against it: dead proxies, a stranger on Prefect's port, an odd folder, umask, no HOME."""

import csv
import os
import socket
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from raft_tasks.artifacts import read_rows
from raft_tasks.schemas import Rewritten

pytestmark = pytest.mark.slow
ROWS = 60
DEAD = "127.0.0.1:9"


class Stranger(BaseHTTPRequestHandler):
    """Answers everything, as many a page does."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>something else</html>")

    def log_message(self, *_):
        pass


@pytest.fixture
def stranger():
    try:
        server = HTTPServer(("127.0.0.1", 4200), Stranger)
    except OSError:
        pytest.skip("port 4200 is taken on this machine")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


def test_rows_are_rewritten_behind_dead_proxies_beside_a_stranger(tmp_path, stranger, clean_environment):
    project = tmp_path / "mein Ölfeld"
    project.mkdir()
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        pairs = csv.writer(file)
        pairs.writerow(["prompt", "completion"])
        pairs.writerows([f"What is the reactor of Figin {n}?", f"Figin | reactor = rope {n}"] for n in range(ROWS))
    environment = {name: value for name, value in clean_environment.items() if name not in ("HOME", "PREFECT_API_URL")}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        environment[name] = f"http://{DEAD}"
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # DVC calls `raft`
    environment["ALL_PROXY"] = f"socks5://{DEAD}"
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "new", f"GIT_{role}_EMAIL": "new@example.org"}

    def call(*command):
        done = subprocess.run(
            command, cwd=project, env=environment, umask=0o077, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    call(sys.executable, "-m", "flows.cli", "init", "--preset", "pocket", "--data", "../pairs.csv", "--domain", "mine")
    call("git", "checkout", "--quiet", "--detach")
    call(sys.executable, "-m", "dvc", "repro", "rewrite@mine")
    rewritten = project / "artifacts" / "mine" / "rewritten.jsonl"
    rows = read_rows(rewritten, Rewritten)
    assert 0 < len(rows) < ROWS  # the others are held out
    assert all(row.rewritten for row in rows)
    assert stat.S_IMODE(os.stat(rewritten).st_mode) == 0o600
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 4200)) == 0  # the stranger is still there, and unharmed
