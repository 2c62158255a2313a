"""A small real job for the tests of the reactor's parts: staged in a folder, over a simulated Prefect."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

from orchestrator.engine.memory import MemoryGateway
from orchestrator.flows.prepare import Prepared, prepare
from orchestrator.flows.request import make_spec
from orchestrator.settings import Settings
from orchestrator.store import as_source

_numbers = itertools.count()


def prepared(storage: str | Path | None = None, items: int = 20, **request: Any) -> Prepared:
    """A job that can be started now; by default in a memory store of its own."""
    root = str(storage or f"memory://unit-{next(_numbers)}")
    wanted = {"deployment": "simulated/batches", "batch_size": 5, "storage": root, **request}
    spec = make_spec(**wanted)
    settings = Settings(beat_seconds=0.05, poll_seconds=0.2, fence_seconds=0.05)
    source = as_source(range(items), storage=root)
    return asyncio.run(prepare(spec, source, MemoryGateway(), settings=settings))
