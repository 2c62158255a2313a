"""Beside the engine of one run, where no worker is: cancels it when Prefect says so, and tells Prefect of its death.

In a container it does what `prefect flow-run execute` does there, with two Python interpreters instead of three: the
engine is started at once, as on a process pool whose jobs have a `command`, not by a process in between that prepares
a workspace. That command itself is run where Prefect's parts for it, which are not public, are others than expected,
where a SIGTERM is to do more than end the run (`PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR`), and where the deployment
names its code relative to the image's own folder, which only a prepared workspace falls back to.
Source: prefect cli/flow_run.py `execute`, workers/process.py `ProcessWorker.run`, runner/_flow_run_executor.py, 3.8.8.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

SIGTERM_BEHAVIOR = "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"
_PREFECTS_OWN = ("reschedule", "relinquish")
"""What only Prefect's command does at a SIGTERM: the run is scheduled again, or left to a retry by the infrastructure.

Anything else, as `crash` or nothing, leaves the signal to the engine, here as there. Source: prefect cli/flow_run.py
`_termination_intent`, 3.8.8."""


async def supervise(run_id: UUID) -> bool:
    """Run Prefect's engine for that run in a process of its own, until it has ended.

    Returns:
        False when that is Prefect's own command's to do (see above); nothing was started then.
    """
    try:
        from prefect.flows import load_flow_from_flow_run
        from prefect.runner._flow_run_executor import FlowRunExecutorContext
        from prefect.runner._starter_engine import EngineCommandStarter

        context = FlowRunExecutorContext()
    except (ImportError, AttributeError, TypeError):
        return False
    # A folder of its own: code that is fetched goes into the current one, here too, where hooks of the flow are run.
    with tempfile.TemporaryDirectory(prefix="prefect-flow-run-") as folder, contextlib.chdir(folder):
        async with context:
            run = await context.client.read_flow_run(run_id)
            if run.deployment_id is None or needs_workspace(await context.client.read_deployment(run.deployment_id)):
                return False
            try:
                starter = EngineCommandStarter(cwd=Path(folder), control_channel=context.control_channel)
                executor = context.create_executor(
                    run, starter, resolve_flow=load_flow_from_flow_run, propose_submitting=False
                )
            except (AttributeError, TypeError):
                return False
            await executor.submit()
    return True


def needs_workspace(deployment: DeploymentResponse) -> bool:
    """Whether its code is named relative to the folder in which the container starts, so that no other one will do.

    `.deploy(image=...)` registers path `.` and no pull steps. Source: prefect flows.py `load_flow_from_flow_run`,
    runner/_workspace_resolver.py `prepare_workspace`, 3.8.8.
    """
    if not deployment.pull_steps:
        in_file = ":" in (deployment.entrypoint or ":")
        return in_file and deployment.storage_document_id is None and not Path(deployment.path or ".").is_absolute()
    folders = [
        options.get("directory")
        for step in deployment.pull_steps
        for name, options in step.items()
        if name.endswith("set_working_directory") and isinstance(options, dict)
    ]
    return any(isinstance(folder, str) and not Path(folder).is_absolute() for folder in folders)


def main() -> None:
    """For the run that `PREFECT__FLOW_RUN_ID` names."""
    if os.environ.get(SIGTERM_BEHAVIOR, "").lower() not in _PREFECTS_OWN and asyncio.run(
        supervise(UUID(os.environ["PREFECT__FLOW_RUN_ID"]))
    ):
        return
    sys.argv = ["prefect", "flow-run", "execute"]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
