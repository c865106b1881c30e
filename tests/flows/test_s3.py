"""Artifacts on S3: pushed to a server that speaks it, and pulled back without the local cache."""

import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("dvc_s3", reason="pip install 'raft-refinery[s3]'")
pytest.importorskip("moto.server", reason="pip install 'moto[server]'")


@pytest.fixture
def bucket(monkeypatch):
    """The address of an S3 server with the bucket `raft`."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="raft")
    yield address
    server.stop()


@pytest.mark.filterwarnings("default")  # botocore's own
def test_artifacts_come_back_from_s3(bucket, tmp_path):
    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    dvc = sys.executable, "-m", "dvc"
    run("git", "init", "-q")
    run(*dvc, "init", "-q")
    run(*dvc, "remote", "add", "-d", "store", "s3://raft/artifacts")
    run(*dvc, "remote", "modify", "store", "endpointurl", bucket)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a"}\n' * 1000)
    before = rows.read_bytes()
    run(*dvc, "add", "-q", "rows.jsonl")
    run(*dvc, "push", "-q")
    rows.unlink()
    shutil.rmtree(tmp_path / ".dvc" / "cache")
    run(*dvc, "pull", "-q")
    assert rows.read_bytes() == before
