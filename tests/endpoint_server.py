"""An OpenAI-compatible server on 127.0.0.1 that answers from the prompt, and goes wrong as often as it is told.

`python tests/endpoint_server.py '{"latency": 0.05, "faults": {"429": 0.1}}'` prints its port and serves until it is
killed. What becomes of a request depends on its prompt, its seed and how often these came before, nothing else:

- faults, each with its share of all tries: "429", "429-retry-after", "500", "hang", "malformed";
  and of all prompts, however often they come: "empty", "400".
- a prompt that is a JSON object says itself what happens: {"status": 429, "times": 2, "headers": {...}} answers with
  that status twice, {"body": "..."} with that body, {"choice": {...}} with that choice.
- GET /stats says what it did; a server with a "key" refuses requests without it.
"""

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

HANG_SECONDS = 30


class Server:
    def __init__(self, latency=0.0, faults=None, key=None):
        self.latency, self.faults, self.key = latency, faults or {}, key
        self.tries = Counter()
        self.did = Counter()
        self.served = Counter()
        self.in_flight = self.most_in_flight = 0

    async def handle(self, reader, writer):
        try:
            while request := await reader.readline():
                headers = {}
                while (line := await reader.readline()) not in (b"\r\n", b""):
                    name, value = line.decode().split(":", 1)
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    status, more, content = await self.answer(request.split()[1].decode(), headers, body)
                finally:
                    self.in_flight -= 1
                head = {"Content-Type": "application/json", "Content-Length": len(content), **more}
                lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + content)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a client that was killed
        finally:
            writer.close()

    async def answer(self, path, headers, body):
        if path == "/stats":
            self.in_flight -= 1
            stats = {
                "did": self.did,
                "served": sum(self.served.values()),
                "prompts": len(self.served),
                "most_in_flight": self.most_in_flight,
            }
            self.in_flight += 1
            return 200, {}, json.dumps(stats).encode()
        request = json.loads(body)
        raw = "prompt" in request  # of /completions
        prompt = request["prompt"] if raw else request["messages"][-1]["content"]
        which = f"{prompt}\x1f{request.get('seed')}"
        self.tries[which] += 1
        await asyncio.sleep(self.latency)
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return self.error("401", 401, f"no such key: {headers.get('authorization')}")
        if prompt.startswith("{"):
            return await self.told(json.loads(prompt), which, request, headers)
        fault = self.fault(which)
        if fault in ("429", "429-retry-after", "500", "400"):
            more = {"retry-after-ms": 30} if fault == "429-retry-after" else {}
            return self.error(fault, int(fault[:3]), "as told", more)
        if fault == "hang":
            self.did["hang"] += 1
            await asyncio.sleep(HANG_SECONDS)
        if fault == "malformed":
            self.did["malformed"] += 1
            return 200, {}, b'{"choices": [{"message": {"content": "half'
        if fault == "empty":
            self.did["empty"] += 1
            return self.completion(which, {"message": {"content": ""}, "finish_reason": "stop"})
        self.did["good"] += 1
        if raw:
            return self.completion(which, {"text": f"{draw('text', which):.3f} ?", "finish_reason": "stop"})
        return self.completion(which, {"message": {"content": self.text(prompt, request)}, "finish_reason": "stop"})

    def fault(self, which):
        for name in ("empty", "400"):
            if draw(name, which) < self.faults.get(name, 0):
                return name
        at, reached = draw("try", which, self.tries[which]), 0.0
        for name in ("429", "429-retry-after", "500", "hang", "malformed"):
            reached += self.faults.get(name, 0)
            if at < reached:
                return name
        return None

    async def told(self, order, which, request, headers):
        if self.tries[which] <= order.get("times", 10**9) and "status" in order:
            return self.error(str(order["status"]), order["status"], order.get("says", "as told"), order.get("headers"))
        if "seconds" in order:
            await asyncio.sleep(order["seconds"])
        if "body" in order:
            return 200, {}, order["body"].encode()
        echo = {**request, "authorization": headers.get("authorization")}
        said = json.dumps(echo)
        choice = {"text": said} if "prompt" in request else {"message": {"content": said}}
        choice["finish_reason"] = "stop"
        return self.completion(which, order.get("choice", choice))

    def text(self, prompt, request):
        """The reference answer in the prompt, said again; it differs by seed."""
        lines = [line for line in prompt.split("\n") if line.startswith("Reference answer: ")]
        said = lines[0].removeprefix("Reference answer: ") if lines else prompt[-40:]
        return f"{said} (said {int(draw('text', prompt, request.get('seed')) * 1000)})"

    def completion(self, which, choice):
        self.served[which] += 1
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return 200, {}, json.dumps({"choices": [{"index": 0, **choice}], "usage": usage}).encode()

    def error(self, name, status, message, more=None):
        self.did[name] += 1
        return status, more or {}, json.dumps({"error": {"message": message, "code": name}}).encode()


def draw(*parts):
    """Uniform in [0, 1), by content."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6]) / 2**48


async def serve(settings):
    server = await asyncio.start_server(Server(**settings).handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def running(**settings):
    """Start a server in a process of its own; yields its base_url."""
    process = subprocess.Popen([sys.executable, __file__, json.dumps(settings)], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()
        process.communicate()


@contextmanager
def answering(reply):
    """A server in this process that answers a chat with `reply(model, prompt)`; yields its base_url."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = reply(request["model"], request["messages"][0]["content"])
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            data = json.dumps({"choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def stats(base_url):
    """What the server has done."""
    with urlopen(base_url.removesuffix("/v1") + "/stats") as answer:
        return json.load(answer)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
