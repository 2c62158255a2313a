"""A parent in a process of its own that ends itself by SIGKILL at a named boundary.

`start` gives it the environment of a stack and a plan. The processes are forked from one that has imported everything:
they are as real as any, and start in a tenth of the time. What a parent passes it notes in a file, one line each, so
that the test knows how far it came.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import prefect.context

from orchestrator.engine import submitting
from orchestrator.flows import call
from orchestrator.reactor import boundaries
from orchestrator.reactor.boundaries import Boundary


@dataclass(frozen=True)
class Plan:
    """What the process does.

    Args:
        request: Of `orchestrate()`, with `deployment` and `items`; None: resume `job_id` of `storage`.
        die_at, nth: The boundary, and which pass of it (1 is the first).
        notes: File that takes a line for each pass.
        log: File that takes what it prints.
        submit_seconds: How long a creation is tried again before its outcome counts as unknown.
    """

    job_id: str
    storage: str
    die_at: str
    nth: int
    notes: str
    log: str
    request: dict[str, Any] | None = field(default=None)
    submit_seconds: float = 20.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))


_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__])


def start(plan: Plan, environment: Mapping[str, str]) -> BaseProcess:
    """Begin to carry the plan out."""
    process = _server.Process(target=_main, args=(plan.to_json(), dict(environment)), daemon=True)
    process.start()
    return process


def _main(text: str, environment: Mapping[str, str]) -> None:
    plan = Plan(**json.loads(text))
    log = os.open(plan.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    prefect.context.refresh_global_settings_context()
    _install(plan)
    submitting._BUDGET_SECONDS = plan.submit_seconds
    if plan.request is None:
        call.resume_sync(plan.job_id, storage=plan.storage, on_failure="return")
    else:
        call.orchestrate_sync(**plan.request, on_failure="return")
    sys.stdout.flush()


def _install(plan: Plan) -> None:
    """Die there."""
    passes: dict[Boundary, int] = {}
    lock = threading.Lock()
    notes = os.open(Path(plan.notes), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def hook(boundary: Boundary) -> None:
        with lock:
            passes[boundary] = passes.get(boundary, 0) + 1
            os.write(notes, f"{boundary.name}\n".encode())
            if boundary.name == plan.die_at and passes[boundary] == plan.nth:
                os.kill(os.getpid(), signal.SIGKILL)

    boundaries.hook = hook
