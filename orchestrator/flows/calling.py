"""One call of `orchestrate()`: where it comes from, how it speaks, and the job it makes ready."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.model import StopMode
from orchestrator.engine.context import ParentRun, outermost_run, run_logger
from orchestrator.engine.gateway import Gateway
from orchestrator.engine.pace import Pace
from orchestrator.engine.parent import PrefectGateway
from orchestrator.flows.plan import Plan, plan
from orchestrator.flows.prepare import Prepared, check_shared, prepare, storage_root, take_over
from orchestrator.flows.request import JobSpec, make_spec
from orchestrator.flows.restore import restore
from orchestrator.reactor import JobThread, JobView, Reactor, Recorder
from orchestrator.settings import Settings
from orchestrator.store import Source, SourcePolicy, as_source

OnView = Callable[[JobView], None]


@dataclass
class Call:
    """One call of ours: where it comes from, how it speaks, and how much it may ask.

    Args:
        shares: The pace of whoever runs several jobs at once, which bounds them together; None: one of its own.
    """

    spec: JobSpec | None
    settings: Settings
    parent: ParentRun | None
    log: logging.Logger | logging.LoggerAdapter[Any]
    on_progress: OnView | None
    policy: SourcePolicy
    shares: Pace | None = None
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        asked = self.spec.max_requests_per_minute if self.spec else None
        own = Pace(asked or self.settings.max_requests_per_minute, say=self.log.warning)
        self.pace = own if self.shares is None else self.shares

    async def open_gateway(self) -> Gateway:
        return PrefectGateway(
            masked_env=self.settings.masked_env,
            submit_concurrency=self.settings.submit_concurrency,
            parent=self.parent.id if self.parent else None,
            pace=self.pace,
        )

    @asynccontextmanager
    async def _asked(self, items: Any) -> AsyncIterator[tuple[JobSpec, Source, Gateway]]:
        """What was asked for, and an open door to ask about it."""
        assert self.spec is not None
        root = storage_root(self.spec.storage, self.settings)
        source = as_source(items, storage=root, policy=self.policy)
        gateway = await self.open_gateway()
        try:
            if isinstance(gateway, PrefectGateway):
                check_shared(root)
            yield self.spec, source, gateway
        finally:
            await gateway.close()

    async def prepare(self, items: Any) -> Prepared:
        async with self._asked(items) as (spec, source, gateway):
            return await prepare(
                spec, source, gateway, settings=self.settings, parent=self.parent,
                on_staging=self._on_staging, say=self.log.warning,
            )  # fmt: skip

    async def plan(self, items: Any, requests_per_minute: int | None, batch_seconds: float) -> Plan:
        async with self._asked(items) as (spec, source, gateway):
            return await plan(
                spec, source, gateway, settings=self.settings, parent=self.parent,
                requests_per_minute=requests_per_minute, batch_seconds=batch_seconds,
            )  # fmt: skip

    async def take_over(self, job_id: str, storage: str | None) -> Prepared:
        gateway = await self.open_gateway()
        try:
            return await take_over(
                job_id, storage_root(storage, self.settings), gateway,
                settings=self.settings, parent=self.parent, say=self.log.warning,
            )  # fmt: skip
        finally:
            await gateway.close()

    def _on_staging(self, items: int, size: int) -> None:
        if items and items % 100_000 == 0:
            self.log.info("Staged %d items (%d MB) so far.", items, size // 1_000_000)

    def thread(self, prepared: Prepared) -> JobThread:
        if self.shares is None:
            self.pace.limit(prepared.max_requests_per_minute)
        else:
            self.pace.lower(prepared.max_requests_per_minute)

        async def make(gateway: Gateway) -> Reactor:
            restored = await restore(prepared.job, gateway) if prepared.resumed else []
            return Reactor(
                prepared.job, gateway, log=self.log, on_view=self.on_progress, restored=restored,
                max_waits=self.settings.max_waits,
                recorder=Recorder(prepared.job) if self.settings.record_events else None,
                unwritable=lambda: prepared.heart.trouble,
            )  # fmt: skip

        return JobThread(prepared.job, prepared.heart, self.open_gateway, make, self.log)

    def interrupt(self, thread: JobThread, prepared: Prepared) -> None:
        """Who waits for the job was interrupted: end it, or leave it, as was asked for."""
        record = prepared.job.stop_of_cancelled(self.parent.name if self.parent else "this process")
        if record is None:
            thread.abandon()
            return
        how = "child runs finish their batch" if record.mode is StopMode.DRAIN else "stopping its child runs"
        self.log.warning("This run was cancelled: %s.", how)
        thread.request_stop(record)


def make_call(
    request: Mapping[str, Any], on_progress: OnView | None = None, policy: SourcePolicy | None = None
) -> Call:
    """A call from the parameters of `orchestrate()`.

    Raises:
        ConfigurationError: a parameter is wrong by itself.
    """
    parent = outermost_run()
    given = {k: v for k, v in request.items() if v is not None or k in ("kill_switch", "fail_if")}
    for name in ("parameters", "job_variables"):
        if isinstance(given.get(name), Mapping):
            given[name] = dict(given[name])
    spec = make_spec(**given)
    if spec.job_id is None and parent is not None:
        spec = spec.model_copy(update={"job_id": f"{parent.id}-{_nth_call(parent)}"})
    settings = Settings()
    log = run_logger(settings.masked_env)
    return Call(spec, settings, parent, log, on_progress, policy or SourcePolicy())


_calls: dict[tuple[str, int], int] = {}
_calls_lock = threading.Lock()


def _nth_call(parent: ParentRun) -> int:
    """Which call of ours this is in the run, counted anew each time Prefect runs it."""
    with _calls_lock:
        n = _calls[(parent.id, parent.run_count)] = _calls.get((parent.id, parent.run_count), 0) + 1
    return n
