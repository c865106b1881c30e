"""What every process runs in: how it waits for a Prefect server."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from flows import environment
from flows.environment import wait_for_server
from flows.server import free_port


@contextmanager
def server_after(seconds, port, status):
    """A server that starts later and answers everything with `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

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


def test_a_stage_waits_for_a_server_that_is_away(capsys):
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


def test_a_server_that_stays_away_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(environment, "SERVER_SECONDS", 0.5)
    began = time.monotonic()
    wait_for_server(f"http://127.0.0.1:{free_port()}/api")
    assert time.monotonic() - began >= 0.5
