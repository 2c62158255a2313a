"""A parent in a process of its own that ends itself by SIGKILL at a named boundary.

Run as `python -m tests.integration.crash_parent PLAN` with a JSON plan; see `Plan`. What it passes it notes in a file,
one line each, so that the test knows how far it came.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import orchestrate_sync, resume_sync
from orchestrator.engine import submitting
from orchestrator.reactor import boundaries
from orchestrator.reactor.boundaries import Boundary


@dataclass(frozen=True)
class Plan:
    """What the process does.

    Args:
        request: Of `orchestrate()`, with `deployment` and `items`; None: resume `job_id` of `storage`.
        die_at, nth: The boundary, and which pass of it (1 is the first).
        notes: File that takes a line for each pass.
        submit_seconds: How long a creation is tried again before its outcome counts as unknown.
    """

    job_id: str
    storage: str
    die_at: str
    nth: int
    notes: str
    request: dict[str, Any] | None = field(default=None)
    submit_seconds: float = 20.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def install(plan: Plan) -> None:
    """Die there."""
    passes: dict[Boundary, int] = {}
    lock = threading.Lock()
    fd = os.open(Path(plan.notes), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def hook(boundary: Boundary) -> None:
        with lock:
            passes[boundary] = passes.get(boundary, 0) + 1
            os.write(fd, f"{boundary.name}\n".encode())
            if boundary.name == plan.die_at and passes[boundary] == plan.nth:
                os.kill(os.getpid(), signal.SIGKILL)

    boundaries.hook = hook


def main() -> None:
    plan = Plan(**json.loads(sys.argv[1]))
    install(plan)
    submitting._BUDGET_SECONDS = plan.submit_seconds
    if plan.request is None:
        resume_sync(plan.job_id, storage=plan.storage, on_failure="return")
    else:
        orchestrate_sync(**plan.request, on_failure="return")


if __name__ == "__main__":
    main()
