"""What every process runs in: how it finds a Prefect server, and that no proxy stands between them."""

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows import environment
from flows.environment import wait_for_server
from flows.server import Server, free_port, serve
from raft_tasks.errors import OperationalError

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def server_after(seconds, port, status, body=b"true"):
    """A server that starts later and answers everything with `status` and `body`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    ready, servers = threading.Event(), []

    def serve():
        time.sleep(seconds)
        servers.append(HTTPServer(("127.0.0.1", port), Handler))
        ready.set()
        servers[0].serve_forever()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield ready
    finally:
        ready.wait()
        servers[0].shutdown()
        servers[0].server_close()
        thread.join()


@pytest.fixture
def in_pipeline(monkeypatch):
    monkeypatch.setenv(environment.PIPELINE_PID, str(os.getpid()))


def test_a_stage_of_a_pipeline_waits_for_a_server_that_is_away(in_pipeline, capsys):
    port = free_port()
    with server_after(1.5, port, 200) as ready:
        wait_for_server(f"http://127.0.0.1:{port}/api")
        assert ready.is_set()
    assert capsys.readouterr().out == f"waiting for the Prefect server at http://127.0.0.1:{port}/api\n"


def test_a_server_that_refuses_is_there(capsys):
    port = free_port()
    with server_after(0.0, port, 401) as ready:
        ready.wait()
        wait_for_server(f"http://127.0.0.1:{port}/api")  # what is wrong is Prefect's to say
    assert capsys.readouterr().out == ""


def test_a_stranger_at_the_address_is_named():
    port = free_port()
    with server_after(0.0, port, 200, b"<html>") as ready:
        ready.wait()
        with pytest.raises(OperationalError, match=r"got '<html>' from its /health, expected 'true' of a Prefect"):
            wait_for_server(f"http://127.0.0.1:{port}/api")


def test_a_server_that_stays_away_is_named_and_not_waited_for_for_ever(in_pipeline, monkeypatch):
    monkeypatch.setattr(environment, "SERVER_SECONDS", 0.5)
    with pytest.raises(OperationalError, match=r"PREFECT_API_URL is http://127.*nothing answers; start that server"):
        wait_for_server(f"http://127.0.0.1:{free_port()}/api")


def test_a_dead_address_is_named_at_once_without_a_pipeline(monkeypatch, capsys):
    monkeypatch.delenv(environment.PIPELINE_PID, raising=False)
    monkeypatch.setattr(environment.time, "sleep", lambda seconds: pytest.fail("it waited"))
    with pytest.raises(OperationalError, match="nothing answers"):
        wait_for_server(f"http://127.0.0.1:{free_port()}/api")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("body", "is_prefect"), [(b"true", True), (b"<html>", False), (b"", False)])
def test_only_prefect_counts_as_a_server_on_its_port(monkeypatch, body, is_prefect):
    port = free_port()
    monkeypatch.setattr(environment, "PREFECT_PORT", port)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    url = f"http://127.0.0.1:{port}/api"
    with server_after(0.0, port, 200, body) as ready:
        ready.wait()
        assert environment.find_server() == (url if is_prefect else None)
        monkeypatch.setenv("PREFECT_API_URL", url)
        if is_prefect:
            assert Server().wait() == url
        else:
            with pytest.raises(OperationalError, match="expected 'true' of a Prefect"):
                Server()


def test_a_stranger_that_knows_no_health_page_is_refused(monkeypatch):
    port = free_port()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    with server_after(0.0, port, 404) as ready:
        ready.wait()
        with pytest.raises(OperationalError, match="got 'status 404' from its /health"):
            Server()


@pytest.mark.parametrize(("body", "there"), [(b"true", "a Prefect server"), (b"<html>", "another program")])
def test_a_port_that_is_taken_is_named(body, there):
    port = free_port()
    with server_after(0.0, port, 200, body) as ready:
        ready.wait()
        with pytest.raises(OperationalError, match=rf"port {port} of 127.0.0.1 is taken by {there} .*raft ui --port"):
            serve(port)


ASK = "import flows, os, sys, httpx; from flows.environment import ask_server; from openai import OpenAI\n"
ASK += "OpenAI(base_url=sys.argv[1], api_key='none')\n"  # its client is made with the proxies of the environment
ASK += "print(ask_server(sys.argv[1]), httpx.get(sys.argv[1]).text, os.environ['PREFECT_API_URL'])"


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "socks://127.0.0.1:9/"])
def test_servers_of_this_machine_are_reached_without_the_proxy_and_a_slash_at_the_end_is_dropped(proxy, tmp_path):
    port = free_port()
    given = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"), proxy)
    given |= {"NO_PROXY": "intranet.example.org", "PREFECT_API_URL": f"http://127.0.0.1:{port}/api/"}
    environ = {**os.environ, **given, "PYTHONPATH": str(ROOT)}
    environ.pop("no_proxy", None)
    with server_after(0.0, port, 200) as ready:
        ready.wait()
        command = [sys.executable, "-c", ASK, f"http://127.0.0.1:{port}/api"]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["true", "true", f"http://127.0.0.1:{port}/api"], done.stderr


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.2", "models.localhost"])
def test_other_names_of_this_machine_are_asked_directly(monkeypatch, host):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    asked = []

    def answer(opener, url, timeout):
        asked.append(
            (url, [type(handler).__name__ for handler in opener.handlers if getattr(handler, "proxies", None)])
        )
        raise OSError

    monkeypatch.setattr("urllib.request.OpenerDirector.open", answer)
    assert environment.ask_server(f"http://{host}:4200/api") is None
    assert asked == [(f"http://{host}:4200/api/health", [])]


def test_a_proxy_of_an_unknown_scheme_ends_in_one_line(tmp_path):
    environ = {**os.environ, "ALL_PROXY": "socks4://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows.cli", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ALL_PROXY names a proxy with the scheme socks4://")


def test_other_hosts_that_the_user_excepts_stay_excepted(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "intranet.example.org")
    monkeypatch.setenv("no_proxy", "")
    environment.prepare()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "intranet.example.org,127.0.0.1,localhost,::1,0.0.0.0"


def test_git_finds_the_folders_own_repository(monkeypatch):
    """A hook's environment names the repository that it belongs to."""
    monkeypatch.setenv("GIT_DIR", "/elsewhere/.git")
    monkeypatch.setenv("GIT_INDEX_FILE", "/elsewhere/.git/index")
    code = "import flows, os; print([name for name in os.environ if name.startswith('GIT_')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "GIT_DIR" not in done.stdout
    assert "GIT_INDEX_FILE" not in done.stdout
