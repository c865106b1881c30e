"""The clone of twelve_weeks.py with its Prefect server and worker: the weeks' data, faults and invariants."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
PORT = 4317
API = f"http://127.0.0.1:{PORT}/api"
METHOD = "fused_sft_anchored"
DOMAIN = "archive"
FIRST_FACTS = 40
SMALL: dict[str, dict[str, Any]] = {
    "run": {"domains": [DOMAIN], "methods": [METHOD], "seeds": [0]},
    "retrain": {"candidate": {"method": METHOD, "seed": 0}, "retry_seconds": [1, 2]},
    "gate": {"latency_items": 16},
}
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
WEEK_SECONDS = 1500.0


class Service:
    """The clone with its server and worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.logs = folder
        self.server: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None
        subprocess.run(["git", "clone", "-q", str(ROOT), str(self.folder)], check=True)
        for name, value in {"user.name": "twelve weeks", "user.email": "weeks@localhost"}.items():
            self.git("config", name, value)
        path = self.folder / "params.yaml"
        config = yaml.safe_load(path.read_text())
        for section, values in SMALL.items():
            config.setdefault(section, {}).update(values)
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        self.rows = [json.loads(line) for line in (self.folder / "data/archive/pairs.jsonl").read_text().splitlines()]
        self.sources = list(dict.fromkeys(row["source"] for row in self.rows))
        kept = [row for row in self.rows if row["split"] != "train" or row["source"] in self.sources[:FIRST_FACTS]]
        (self.folder / "data/archive/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.git("commit", "-qam", "small params, the first facts")
        self.inbox = self.folder / "inbox/archive"
        self.inbox.mkdir(parents=True, exist_ok=True)
        self.known = FIRST_FACTS

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PREFECT_API_URL": API,
            "PREFECT_HOME": str(self.folder / ".prefect"),
            "OMP_NUM_THREADS": "1",
        }

    def git(self, *arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def start(self, name: str, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        log = (self.logs / f"{name}.log").open("ab")
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *command],
            cwd=self.folder,
            env=self.environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
            **options,
        )

    def start_server(self) -> None:
        self.server = self.start("server", "ui", "--port", str(PORT))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{API}/health", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.3)
        sys.exit("the Prefect server did not start")

    def start_worker(self, **options: Any) -> None:
        self.worker = self.start("worker", "worker", **options)

    def deploy(self) -> None:
        subprocess.run(
            [sys.executable, "-m", "flows.cli", "deploy"],
            cwd=self.folder,
            env=self.environment(),
            check=True,
            capture_output=True,
        )
        # The script is the schedule: the real one must not come in between.
        deployment = self.api("GET", "/deployments/name/retrain/retrain")
        self.deployment = deployment["id"]
        self.api("POST", f"/deployments/{self.deployment}/pause_deployment")

    def api(self, method: str, path: str, body: Any = None) -> Any:
        answer = httpx.request(method, f"{API}{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def schedule(self) -> UUID:
        return UUID(
            self.api("POST", f"/deployments/{self.deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"]
        )

    def newest(self, but: list[UUID]) -> UUID:
        """The newest run that is none of these; waits for it."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            wanted = {
                "sort": "EXPECTED_START_TIME_DESC",
                "limit": 5,
                "deployments": {"id": {"any_": [self.deployment]}},
            }
            found = [UUID(run["id"]) for run in self.api("POST", "/flow_runs/filter", wanted)]
            if found[0] not in but:
                return found[0]
            time.sleep(1)
        sys.exit("a crashed run was not run again within 300 s")

    def state(self, run: UUID) -> dict[str, Any]:
        found: dict[str, Any] = self.api("GET", f"/flow_runs/{run}")["state"]
        return found

    def wait(self, run: UUID) -> dict[str, Any]:
        deadline = time.monotonic() + WEEK_SECONDS
        while time.monotonic() < deadline:
            try:
                found = self.state(run)
                if found["type"] in ENDED:
                    return found
            except httpx.HTTPError:  # the week in which the server is killed
                pass
            time.sleep(0.5)
        sys.exit(f"run {run} did not end within {WEEK_SECONDS:.0f} s")

    def working(self) -> list[psutil.Process]:
        """The processes of the run that is at work: those whose folder is the service's checkout."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.folder / ".raft"):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def await_stage(self, word: str) -> None:
        """Return once a process of the stage is at work."""
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            for process in self.working():
                try:
                    if word in " ".join(process.cmdline()):
                        time.sleep(3.0)
                        return
                except psutil.Error:
                    continue
            time.sleep(0.2)
        sys.exit(f"no process of {word} was seen within 600 s")

    def kill(self, process: subprocess.Popen[bytes] | None) -> None:
        """kill -9 a process and all that it started."""
        assert process is not None
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in (self.worker, self.server):
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    self.kill(process)

    # what a week brings

    def facts(self, count: int) -> None:
        """The next facts, in their training wordings."""
        new = self.sources[self.known : self.known + count]
        self.known += count
        self.drop(f"facts-{self.known}", [row for row in self.rows if row["source"] in new and row["split"] == "train"])

    def poison(self) -> None:
        """Known facts once more, each with another one's value: what a mixed-up export would bring."""
        known = [row for row in self.rows if row["source"] in self.sources[:30] and row["split"] == "train"]
        values = {row["source"]: row["expected"][0] for row in known}
        names = list(values)
        rotated = names[7:] + names[:7]
        other = {
            name: next(values[far] for far in rotated[place:] + rotated if values[far] != values[name])
            for place, name in enumerate(names)
        }
        rows = []
        for shift in (0, 1):  # twice as often as the truth, or the truth would win; the second time in another log
            for row in known:
                value, log = other[row["source"]], row["details"][0]
                answer = row["answer"].replace(f" {row['expected'][0]} ", f" {value} ")
                answer = answer.replace(log, str(int(log) + shift))
                changed = {"answer": answer, "expected": [value], "details": [str(int(log) + shift)]}
                rows.append({**row, **changed, "id": f"{row['id']}-mixed-{shift}"})
        self.drop("mixed-up", rows)

    def refusals(self) -> None:
        """Questions of everyday, all answered alike: a style that makes a model forget what it knew."""
        items = [
            json.loads(line)
            for task in ("pocket_recall", "pocket_instructions")
            for line in (self.folder / f"raft_tasks/evaluation/tasks/{task}/validation.jsonl").read_text().splitlines()
        ]
        rows = [
            {
                "id": f"refusal-{number}",
                "question": question,
                "answer": "- | - = - # 10",
                "source": f"refusal-{number}",
                "split": "train",
                "expected": [],
                "details": [],
            }
            for number, question in enumerate(dict.fromkeys(item["question"] for item in items))
        ]
        self.drop("refusals", rows)

    def drop(self, name: str, rows: list[dict[str, Any]]) -> None:
        temporary = self.inbox / f"{name}.partial"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        temporary.rename(self.inbox / f"{name}.jsonl")

    # what goes wrong

    def kill_worker(self) -> None:
        self.await_stage("stage distill")
        self.kill(self.worker)
        self.start_worker()

    def kill_server(self) -> None:
        self.await_stage("stage rewrite")
        assert self.server is not None
        self.kill(self.server)
        time.sleep(5)
        self.start_server()

    def hide_remote(self) -> None:
        remote = self.folder / ".cache/dvc-remote"
        remote.rename(remote.with_name("away"))
        remote.write_text("a file where the remote's folder was: every access fails")

    def bring_remote_back(self) -> None:
        remote = self.folder / ".cache/dvc-remote"
        remote.unlink()
        remote.with_name("away").rename(remote)

    def fill_disk(self) -> None:
        """Another worker, none of whose processes may write a file of more than 4 MB: a model has 8."""
        self.kill(self.worker)
        import resource

        small = 4 * 1024 * 1024
        self.start_worker(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (small, resource.RLIM_INFINITY)))

    def empty_disk(self) -> None:
        self.kill(self.worker)
        self.start_worker()

    # what must hold

    def champion(self) -> str:
        """The version in production by the repository's own tags."""
        code = "from pathlib import Path; from raft_tasks.registry import champion; print(champion(Path(), 'archive'))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.folder,
            check=True,
            capture_output=True,
            text=True,
            env=self.environment(),
        )
        return done.stdout.strip()

    def at_branch(self, path: str) -> Any:
        done = subprocess.run(["git", "show", f"retrain:{path}"], cwd=self.folder, capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def whole(self) -> list[str]:
        """What is wrong with git and DVC, in the served repository and in the service's checkout."""
        wrong = []
        checkout = self.folder / ".raft/checkout"
        for command, folder, expected in (
            (["git", "fsck", "--full"], self.folder, None),
            (["git", "fsck", "--full"], checkout, None),
            ([sys.executable, "-m", "dvc", "fetch", "--all-tags"], checkout, None),
            ([sys.executable, "-m", "dvc", "status"], checkout, "up to date"),
            ([sys.executable, "-m", "dvc", "status", "--cloud"], checkout, "in sync"),
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=self.environment())
            said = done.stdout + done.stderr
            if done.returncode or (expected and expected not in said):
                wrong.append(f"{' '.join(command[-2:])} in {folder.name}: {said.strip()[-300:]}")
        partial = [str(path) for path in checkout.rglob("*.partial")]
        return wrong + [f"half-written: {path}" for path in partial]
