"""An endpoint's key is in the environment and nowhere else: everything that a run writes is searched for it."""

import base64
import json
import subprocess
import sys

import pytest
import yaml
from endpoint_server import running
from project_copies import ROOT, copy_project

# In two parts: this file is copied into the project that is searched.
KEY = "sk-planted-" + "9f2c1e77ab"
WRONG_KEY = "sk-planted-" + "wrong-51d0"
KEY_NAME = "RAFT_PLANTED_KEY"


def files_with(folder, secret):
    """The files below `folder` that hold `secret`, in plain or in base64 at any of its three offsets."""
    needles = [secret.encode()]
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + secret.encode()).rstrip(b"=")
        needles.append(coded[4:-2])  # what its neighbours do not change
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    )


def test_the_search_finds_what_is_there(tmp_path):
    (tmp_path / "plain.bin").write_bytes(b"\x00\xff" + KEY.encode())
    for offset in range(3):
        (tmp_path / f"coded-{offset}.txt").write_text(base64.b64encode(f"{'x' * offset}{KEY}yz".encode()).decode())
    (tmp_path / "innocent.txt").write_text(WRONG_KEY)
    assert files_with(tmp_path, KEY) == ["coded-0.txt", "coded-1.txt", "coded-2.txt", "plain.bin"]


@pytest.mark.slow
def test_the_key_of_an_endpoint_is_nowhere(tmp_path, clean_environment):
    """Whether the endpoint refuses or answers, up to the report: artifacts, models, calls, reports, DVC's caches,
    Prefect's database, what is printed."""
    folder = tmp_path / "project"
    folder.mkdir()
    with running(key=KEY) as base_url:
        writer = {
            "base_url": base_url, "model": "m", "seeds": True, "options": {}, "length_field": "max_tokens",
            "api_key_env": KEY_NAME, "concurrency": 8, "timeout_s": 5.0, "max_retries": 1,
            "price_per_million_input": 1.0, "price_per_million_output": 1.0,
        }  # fmt: skip
        tasks = yaml.safe_load((ROOT / "params.yaml").read_text())["benchmark"]["tasks"]
        small = {"train": {"epochs": 1}, "benchmark": {"limit": dict.fromkeys(tasks, 4)}}
        run = {"models": {"writer": writer}, "run": {"methods": ["sft"], "seeds": [0]}, "rewrite": {"model": "writer"}}
        copy_project(folder, {**run, **small})
        path = folder / "data/archive/pairs.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        few = [row for split in ("train", "test") for row in [row for row in rows if row["split"] == split][:8]]
        path.write_text("".join(json.dumps(row) + "\n" for row in few))
        for key, code in ((WRONG_KEY, 1), (KEY, 0)):
            done = subprocess.run(
                [sys.executable, "-m", "flows.cli", "run"],
                cwd=folder,
                env={**clean_environment, KEY_NAME: key},
                capture_output=True,
                text=True,
            )
            said = done.stdout + done.stderr
            assert done.returncode == code, said
            assert ("refused the key in $RAFT_PLANTED_KEY" in said) == bool(code)
            assert key not in said
    assert list((folder / ".prefect").glob("*.db"))  # the database is among what is searched
    assert (folder / ".cache/responses.sqlite").exists()
    assert (folder / "reports/report.html").exists()
    assert files_with(folder, KEY) == []
    assert files_with(folder, WRONG_KEY) == []
