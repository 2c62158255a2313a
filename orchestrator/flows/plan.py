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
from orchestrator.flows.prepare import news_seconds, options_of, record_of, storage_root
from orchestrator.flows.request import JobSpec
from orchestrator.flows.requests import (
    BATCH_SECONDS,
    CHILD_REQUESTS,
    PARENT_REQUESTS_PER_CHILD,
    RequestPlan,
    request_plan,
    request_warnings,
)
from orchestrator.flows.target import Target, check_groups, check_items, find_target
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, Source, Staged, local_path, open_store, probe, stage

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
        limit: What a limit of requests per minute means for it; None when none was asked about.
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
    limit: RequestPlan | None = None
    warnings: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON, the form of `plan --json`."""
        data = asdict(self)
        data["api_requests"] = {"parent": self.api_requests[0], "children": self.api_requests[1]}
        data["limit"] = None if self.limit is None else asdict(self.limit)
        data["warnings"] = list(self.warnings)
        return data


async def plan(
    spec: JobSpec,
    source: Source,
    gateway: Gateway,
    *,
    settings: Settings,
    parent: ParentRun | None = None,
    requests_per_minute: int | None = None,
    batch_seconds: float = BATCH_SECONDS,
) -> Plan:
    """Do everything that `orchestrate()` does before the first child exists, in a folder that is removed again.

    Args:
        requests_per_minute: A limit of the server's, to be looked at; None for none.
        batch_seconds: How long a batch is taken to run under that limit.

    Raises:
        ConfigurationError and its kin: as `orchestrate()` would.
        EngineUnavailableError: Prefect cannot be asked.
    """
    root = storage_root(spec.storage, settings)
    target = await find_target(spec, gateway, parent, root)
    await asyncio.to_thread(lambda: probe(open_store(root)))
    found = await asyncio.to_thread(_stage_and_look, spec, source, target, settings, root)
    if requests_per_minute is None:
        return found
    budget = spec.max_requests_per_minute or settings.max_requests_per_minute
    limit = request_plan(
        requests_per_minute, batch_seconds,
        batches=found.batches, window=found.max_in_flight, news_seconds=news_seconds(spec, settings), budget=budget,
    )  # fmt: skip
    warnings = (*found.warnings, *request_warnings(limit, found.max_in_flight, budget))
    return replace(found, limit=limit, warnings=warnings)


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
            f"only {staged.batches} {'batch' if staged.batches == 1 else 'batches'} for max_in_flight={target.window}: "
            "a smaller batch_size uses it all, where its items take longer than a child run to start"
        )
    if target.window > SQLITE_IN_FLIGHT:
        said.append(
            f"{target.window} child runs at once: above about {SQLITE_IN_FLIGHT} a server on SQLite slows down; use "
            "PostgreSQL"
        )
    if staged.bytes > 1 << 30 and local_path(root) is not None:
        said.append(f"{staged.bytes / 1e9:.1f} GB of items will be copied into {root}")
    return said
