"""What the scaled-out stack is set up with: its two work pools, the parent, and the demo's batch flow on both of them.

Run by the service `setup` of compose.yaml, at every `up`. It does not touch what people set: limits, pauses, schedules.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

from orchestrator.stack.containers import docker_template
from orchestrator.stack.template import process_template

FLOWS = "/opt/flows"
DEMO = "deployments/source_metrics.py:source_metrics"


def job_template() -> dict[str, Any]:
    """How containers are started here: the image, the volume of the jobs, the network that leads to the API."""
    template = docker_template(
        image=os.environ["JOB_IMAGE"],
        volumes=os.environ["JOB_VOLUMES"].split(","),
        env={"ORCHESTRATOR_STORAGE": os.environ["ORCHESTRATOR_STORAGE"]},
        labels={"io.prefect-batch-orchestrator.project": os.environ["JOB_PROJECT"]},
    )
    variables = template["variables"]["properties"]
    if networks := os.environ.get("JOB_NETWORKS"):
        variables["networks"]["default"] = networks.split(",")
    if mode := os.environ.get("JOB_NETWORK_MODE"):
        variables["network_mode"]["default"] = mode
    return template


async def pool(client: PrefectClient, name: str, type_: str, template: dict[str, Any]) -> None:
    """A work pool with that template; of one that exists, only the template is brought up to date."""
    try:
        await client.read_work_pool(name)
    except ObjectNotFound:
        await client.create_work_pool(WorkPoolCreate(name=name, type=type_, base_job_template=template))
    else:
        await client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


async def pools() -> None:
    async with get_client() as client:
        await pool(client, "local", "process", process_template("python -m orchestrator.start"))
        await pool(client, "docker", "docker", job_template())


def demo() -> Path:
    """A prefect.yaml with the demo's batch flow, for processes and for containers."""
    kinds = {"default": "local", "docker": "docker"}
    content = {
        "name": "prefect-batch-orchestrator",
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": FLOWS}}],
        "deployments": [
            {"name": name, "entrypoint": DEMO, "work_pool": {"name": work_pool}} for name, work_pool in kinds.items()
        ],
    }
    file = Path("/tmp/prefect.yaml")
    file.write_text(json.dumps(content))  # JSON is YAML
    return file


def main() -> None:
    asyncio.run(pools())
    subprocess.run(["orchestrator", "deploy", "--pool", "local"], check=True)
    deploy = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(demo())]
    subprocess.run(deploy, cwd=FLOWS, check=True)


if __name__ == "__main__":
    main()
