"""A stand-in for the hub on loopback: the endpoints that creating a repository and uploading a folder call."""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

TOKEN = "hf_stand_in"
LARGE = (".safetensors", "tokenizer.json")


class Hub:
    """Repositories by id: {"private": ..., "files": {path: bytes}, "messages": [...]}; large objects by SHA-256."""

    def __init__(self):
        self.repositories, self.objects, self.refused = {}, {}, 0

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}
        private = asked["visibility"] == "private"
        self.repositories[name] = {"private": private, "files": {}, "messages": []}
        return 200, {"url": f"{self.address}/{name}"}

    def about(self, name):
        repository = self.repositories[name]
        return 200, {"id": name, "private": repository["private"], "sha": "1" * 40, "tags": [], "downloads": 0,
                     "likes": 0, "siblings": [{"rfilename": path} for path in repository["files"]]}  # fmt: skip

    def tree(self, name):
        files = self.repositories[name]["files"]
        return 200, [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files.items()]

    def batch(self, name, asked):
        return 200, {"transfer": "basic", "objects": [
            {**wanted, "actions": {"upload": {"href": f"{self.address}/objects/{wanted['oid']}"}}}
            for wanted in asked["objects"]
        ]}  # fmt: skip

    def commit(self, name, lines):
        repository = self.repositories[name]
        for line in map(json.loads, lines.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    repository["messages"].append(value["summary"])
                case "file":
                    repository["files"][value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    repository["files"][value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    del repository["files"][value["path"]]
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{'2' * 40}", "commitOid": "2" * 40}


def answer(hub, method, path, body):
    """(status, JSON) of a request."""
    path = path.partition("?")[0]
    if path == "/api/repos/create":
        return hub.create(json.loads(body))
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if match := re.fullmatch(r"/objects/(\w+)", path):
        assert hashlib.sha256(body).hexdigest() == match[1]
        hub.objects[match[1]] = body
        return 200, {}
    if match := re.fullmatch(r"/([\w-]+/[\w-]+)\.git/info/lfs/objects/batch", path):
        return hub.batch(match[1], json.loads(body))
    match = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(?:/(revision|tree|preupload|commit)/main)?", path)
    if match is None or match[1] not in hub.repositories:
        return 404, {"error": f"{method} {path}"}
    if match[2] == "tree":
        return hub.tree(match[1])
    if match[2] == "commit":
        return hub.commit(match[1], body)
    if match[2] == "preupload":
        return 200, {"files": [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
             "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]}  # fmt: skip
    return hub.about(match[1])


@contextmanager
def hub_server():
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self):
            body = self.read_body()
            allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}" or self.path.startswith("/objects/")
            hub.refused += not allowed
            status, content = (
                answer(hub, self.command, self.path, body) if allowed else (401, {"error": "Invalid credentials"})
            )
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def read_body(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = do_PUT = respond

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
