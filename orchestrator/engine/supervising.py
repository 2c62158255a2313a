"""Beside the engine of one run, where no worker is: cancels it when Prefect says so, and tells Prefect of its death.

In a container it does what `prefect flow-run execute` does there, with two Python interpreters instead of three: the
engine is started at once, as on a process pool whose jobs have a `command`, not by a process in between that prepares
a workspace. Prefect's parts for it are not public; where they are missing, that command itself is run.
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
from uuid import UUID


async def supervise(run_id: UUID) -> None:
    """Run Prefect's engine for that run in a process of its own, until it has ended."""
    from prefect.flows import load_flow_from_flow_run
    from prefect.runner._flow_run_executor import FlowRunExecutorContext
    from prefect.runner._starter_engine import EngineCommandStarter

    # A folder of its own: code that is fetched goes into the current one, here too, where hooks of the flow are run.
    with tempfile.TemporaryDirectory(prefix="prefect-flow-run-") as folder, contextlib.chdir(folder):
        async with FlowRunExecutorContext() as context:
            run = await context.client.read_flow_run(run_id)
            starter = EngineCommandStarter(cwd=Path(folder), control_channel=context.control_channel)
            executor = context.create_executor(
                run, starter, resolve_flow=load_flow_from_flow_run, propose_submitting=False
            )
            await executor.submit()


def main() -> None:
    """For the run that `PREFECT__FLOW_RUN_ID` names."""
    try:
        from prefect.runner._flow_run_executor import FlowRunExecutorContext  # noqa: F401
        from prefect.runner._starter_engine import EngineCommandStarter  # noqa: F401
    except ImportError:
        sys.argv = ["prefect", "flow-run", "execute"]
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)
        return
    asyncio.run(supervise(UUID(os.environ["PREFECT__FLOW_RUN_ID"])))


if __name__ == "__main__":
    main()
