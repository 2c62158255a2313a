"""On the page of the job whose items are run again: which job runs them."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from orchestrator.core.model import RunId
from orchestrator.engine.gateway import Gateway
from orchestrator.reactor.job import Job
from orchestrator.reactor.page import code, escape, page_key


async def tell_first(job: Job, gateway: Gateway, log: logging.Logger | logging.LoggerAdapter[Any]) -> None:
    """Add the line; nothing where that job left no page. For people only: never raises."""
    job_id, url = job.first or ("", None)
    try:
        run_id = RunId(str(UUID((url or "").rpartition("/")[2])))
    except ValueError:
        return
    label = f"[{escape(job.id)}]({job.url})" if job.url else code(job.id)
    try:
        await gateway.add_to_page(run_id, page_key(job_id), f"What it left is run again by job {label}.")
    except Exception as e:  # noqa: BLE001 - whatever is wrong with it, the job goes on
        log.debug("The page of job %s could not be told of this one: %s", job_id, e)
