"""The parents that `children` compares, each in a process of its own: `python -m benchmarks.parents WHICH N AT_ONCE`.
Ours also takes the name of another deployment.

Prints what it took as JSON: wall and CPU seconds from the first request to the last, imports excluded, and the
requests that it knows of.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any


async def plain_loop(children: int, at_once: int) -> dict[str, Any]:
    """The loop that Prefect's documentation leads to: a semaphore, `run_deployment`, `wait_for_flow_run`."""
    from prefect.deployments import run_deployment
    from prefect.flow_runs import wait_for_flow_run

    limit = asyncio.Semaphore(at_once)

    async def one(index: int) -> bool:
        async with limit:
            run = await run_deployment(
                "bench-plain/default", parameters={"items": [index]}, timeout=0, as_subflow=False
            )
            run = await wait_for_flow_run(run.id, timeout=300)
            return run.state is not None and run.state.is_completed()

    ended = await asyncio.gather(*(one(index) for index in range(children)))
    return {"completed": sum(ended)}


async def ours(children: int, at_once: int, deployment: str = "bench-noop/default") -> dict[str, Any]:
    from orchestrator import orchestrate

    report = await orchestrate(deployment, range(children), batch_size=1, max_in_flight=at_once, on_failure="return")
    return {"completed": report.batches.completed, "api_requests": report.api_requests}


def main(which: str, children: str, at_once: str, *more: str) -> None:
    import prefect.deployments
    import prefect.flow_runs  # noqa: F401 - imported before the clock starts, for both

    import orchestrator.flows.call  # noqa: F401

    wall, cpu = time.monotonic(), time.process_time()
    found = asyncio.run({"plain": plain_loop, "ours": ours}[which](int(children), int(at_once), *more))
    found |= {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
