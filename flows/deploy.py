"""Record the deployments of prefect.yaml on a Prefect server, or work for them.

The server is PREFECT_API_URL, or the one of `raft ui` on this machine. Two automations come with the deployments:

    a run that no longer answers is crashed     a machine that lost its power tells nobody; without this, the run would
                                                count as running for ever, and the next one wait for it
    a crashed retrain is run again              a minute later; it finds what is finished and goes on there
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from flows.environment import find_server
from flows.server import prefect_at
from raft_tasks.errors import InputError, OperationalError

if TYPE_CHECKING:
    from prefect.automations import Automation

POOL = "raft"
SILENT_SECONDS = 120  # of a run whose heart beats every 30 s
AGAIN_SECONDS = 60  # after a crash


def server() -> str:
    """The API's URL. OperationalError where no server answers on this machine."""
    url = find_server()
    if url is None:
        raise OperationalError(
            "no Prefect server answers on this machine; start one with `raft ui`, or set PREFECT_API_URL"
        )
    return url


def environment() -> dict[str, str]:
    """Of Prefect's own commands."""
    return {
        **os.environ,
        "PREFECT_API_URL": server(),
        "RAFT_PROJECT": str(Path.cwd()),
        "PYTHONPATH": str(Path.cwd()),  # a run imports `flows` from this folder, whatever the worker's is
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
    }


def prefect(*arguments: str) -> list[str]:
    """Prefect's own command."""
    return [sys.executable, "-m", "prefect", "--no-prompt", *arguments]


def run(*arguments: str) -> None:
    """Run Prefect's own command, whose output is shown. OperationalError if it failed."""
    done = subprocess.run(prefect(*arguments), env=environment())
    if done.returncode:
        raise OperationalError(f"prefect {' '.join(arguments)} ended with code {done.returncode}")


def automations(retrain: UUID) -> list[Automation]:
    """What the server does by itself; `retrain` is the deployment's id."""
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState, RunDeployment
    from prefect.events.schemas.automations import EventTrigger, Posture

    from flows.retrain import OUTCOMES

    states = ("Completed", "Failed", "Cancelled", "Crashed", *OUTCOMES)  # an event bears the name of the state
    ends = {f"prefect.flow-run.{state}" for state in states}
    silent = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *ends},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENT_SECONDS),
    )
    crashed = EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={
            "prefect.resource.role": "deployment",
            "prefect.resource.id": f"prefect.deployment.{retrain}",
        },
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(seconds=0),
    )
    message = f"it has not answered for {SILENT_SECONDS} s: its process or its machine is gone"
    return [
        Automation(
            name="raft: a run that no longer answers is crashed",
            trigger=silent,
            actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message, force=False)],
        ),
        Automation(
            name="raft: a crashed retrain is run again",
            trigger=crashed,
            actions=[
                RunDeployment(
                    source="selected",
                    deployment_id=retrain,
                    parameters=None,
                    job_variables=None,
                    schedule_after=timedelta(seconds=AGAIN_SECONDS),
                )
            ],
        ),
    ]


def check_no_other_project() -> None:
    """Deployments have fixed names, so a server takes those of one project. InputError where it has another's."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with prefect_at(server()), get_client(sync_client=True) as client:
        try:
            steps = client.read_deployment_by_name("retrain/retrain").pull_steps or []
        except ObjectNotFound:
            return
    for step in steps:
        for settings in step.values():
            folder = settings.get("directory")
            if folder and Path(folder).is_dir() and Path(folder).resolve() != Path.cwd().resolve():
                raise InputError(
                    f"this Prefect server has the deployments of {folder}, which would be replaced; give each project "
                    "a server (`raft ui --port PORT`, PREFECT_API_URL), or `prefect deployment delete retrain/retrain`"
                )


def record_deployments() -> None:
    """Make the work pool, record the deployments of prefect.yaml and replace the automations: `raft deploy`.

    Raises:
        InputError: the server has another project's.
    """
    from prefect.client.orchestration import get_client

    check_no_other_project()
    run("work-pool", "create", POOL, "--type", "process", "--overwrite")
    run("deploy", "--all", "--prefect-file", "prefect.yaml")
    with prefect_at(server()), get_client(sync_client=True) as client:
        for made in automations(client.read_deployment_by_name("retrain/retrain").id):
            for recorded in client.read_automations_by_name(made.name):
                client.delete_automation(recorded.id)
            made.create()


def work() -> None:
    """Become a worker: one process, so that whoever stops or waits for this one, stops or waits for the worker."""
    worker = prefect("worker", "start", "--pool", POOL, "--type", "process", "--limit", "1")
    os.execve(worker[0], worker, environment())
