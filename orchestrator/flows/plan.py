"""What a job would be: batches, sizes, requests, and what is wrong or tight. Creates nothing that stays."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.engine.context import ParentRun
from orchestrator.engine.gateway import Gateway
from orchestrator.flows.prepare import options_of, record_of, storage_root
from orchestrator.flows.request import JobSpec
from orchestrator.flows.target import Target, check_groups, check_items, find_target
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, Source, Staged, local_path, open_store, probe, stage

CHILD_REQUESTS = 28
"""HTTP requests and websockets of one no-op child run. Source: measured on Prefect 3.8.8."""
PARENT_REQUESTS_PER_CHILD = 6
PARENT_REQUESTS_PER_MINUTE = 60
SQLITE_IN_FLIGHT = 16
"""Above so many children at once, SQLite's write lock is felt in every request. Source: measured on Prefect 3.8.8."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A job that was not started.

    Args:
        smallest, median, largest: Items per batch.
        largest_bytes: Of the largest batch, as JSON.
        max_in_flight: The effective bound.
        waves: Batches one after another in each place of the window.
        api_requests: Made by the parent for its children, and by the children: (parent, children).
        warnings: What is wrong or tight, one line each, with the remedy.
    """

    deployment: str
    items: int
    batches: int
    smallest: int
    median: int
    largest: int
    bytes: int
    largest_bytes: int
    max_in_flight: int
    waves: int
    kill_switch: str | None
    storage: str
    api_requests: tuple[int, int]
    warnings: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON, the form of `plan --json`."""
        data = asdict(self)
        data["api_requests"] = {"parent": self.api_requests[0], "children": self.api_requests[1]}
        data["warnings"] = list(self.warnings)
        return data


async def plan(
    spec: JobSpec, source: Source, gateway: Gateway, *, settings: Settings, parent: ParentRun | None = None
) -> Plan:
    """Do everything that `orchestrate()` does before the first child exists, in a folder that is removed again.

    Raises:
        ConfigurationError and its kin: as `orchestrate()` would.
        EngineUnavailableError: Prefect cannot be asked.
    """
    root = storage_root(spec.storage, settings)
    target = await find_target(spec, gateway, parent, root)
    await asyncio.to_thread(probe, open_store(root))
    return await asyncio.to_thread(_stage_and_look, spec, source, target, settings, root)


def _stage_and_look(spec: JobSpec, source: Source, target: Target, settings: Settings, root: str) -> Plan:
    with tempfile.TemporaryDirectory(prefix="orchestrator-plan-") as scratch:
        folder = JobFolder(str(Path(scratch) / "plan"))
        staged = stage(source, folder, "plan", options_of(spec, storage=root), on_progress=None)
        future = folder.as_if(record_of(spec, source, "plan", "plan", staged, settings, local=True))
        batches = list(future.batches())
        if isinstance(spec.deployment, dict):
            check_groups(spec, (b.group for b in batches))
        if spec.pass_items.by_value:
            check_items(spec, target, future, batches, settings.parameters_max_bytes)
    counts = sorted(b.count for b in batches) or [0]
    return Plan(
        deployment=", ".join(dict.fromkeys(d.name for d in target.deployments.values())),
        items=staged.total,
        batches=staged.batches,
        smallest=counts[0],
        median=counts[len(counts) // 2],
        largest=counts[-1],
        bytes=staged.bytes,
        largest_bytes=max((b.length for b in batches), default=0),
        max_in_flight=min(target.window, max(staged.batches, 1)),
        waves=math.ceil(staged.batches / target.window),
        kill_switch=spec.kill_switch,
        storage=root,
        api_requests=(PARENT_REQUESTS_PER_CHILD * staged.batches, CHILD_REQUESTS * staged.batches),
        warnings=(*staged.warnings, *target.advice, *_tight(spec, staged, target, root)),
    )


def _tight(spec: JobSpec, staged: Staged, target: Target, root: str) -> list[str]:
    """Recommendations that follow from the numbers alone."""
    said = []
    if staged.batches and staged.total / staged.batches < 5 and not spec.pass_items.by_value and staged.total > 50:
        said.append(
            f"{staged.batches:,} batches of about {staged.total / staged.batches:.0f} items: each child run costs "
            "about a second of CPU to start; a larger batch_size is cheaper"
        )
    if 0 < staged.batches < target.window:
        said.append(
            f"only {staged.batches} batches for max_in_flight={target.window}: a smaller batch_size uses it all"
        )
    if target.window > SQLITE_IN_FLIGHT:
        said.append(
            f"{target.window} child runs at once: above about {SQLITE_IN_FLIGHT} a server on SQLite slows down; use "
            "PostgreSQL"
        )
    if staged.bytes > 1 << 30 and local_path(root) is not None:
        said.append(f"{staged.bytes / 1e9:.1f} GB of items will be copied into {root}")
    return said
