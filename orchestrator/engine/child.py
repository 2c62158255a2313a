"""The child's door: what a batch flow needs of the Prefect run it is, and nothing of any other run.

Its requests never decide anything: progress is news, limits are waited for, and the final state is what the flow
returns. The one exception is the last resort, `end_process`, for a run whose own loop no longer answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID

import cloudpickle  # type: ignore[import-untyped]
from prefect import tags as prefect_tags
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import ConcurrencyLeaseHolder, State, StateType
from prefect.context import FlowRunContext, hydrated_context, serialize_context
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker

from orchestrator.engine import groups
from orchestrator.engine.limits import trouble
from orchestrator.engine.masking import MaskedLogger, mask
from orchestrator.engine.progress import ARTIFACT_TYPE
from orchestrator.engine.slots import RateLine, SlotPool, impatient_client
from orchestrator.errors import ConfigurationError

_DRAIN_SECONDS = 3.0


class _Unbreakable(MaskedLogger):
    """The run's logger, which ends nobody: rich raises SystemExit from a log line once the console's pipe is broken.

    A worker that was killed leaves its children such a pipe, and a line logged by the thread that watches over a stop
    would end that thread without a word. Source: rich/console.py `on_broken_pipe`; seen with Prefect 3.8.8.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        try:
            super().log(level, msg, *args, **kwargs)
        except SystemExit:
            pass


class RunDoor:
    """The door of the flow run that calls this; implements `batchrun.door.Door`.

    Args:
        masked_env: Names of environment variables whose values are masked.

    Raises:
        MissingContextError: there is no flow run here.
    """

    def __init__(self, masked_env: Sequence[str] = ()) -> None:
        self._masked_env = tuple(masked_env)
        context = FlowRunContext.get()
        run = context.flow_run if context else None
        self.logger: logging.Logger | logging.LoggerAdapter[Any] = _Unbreakable(get_run_logger(), self.mask)
        self.run_name = str(run.name) if run else ""
        self._run_id: UUID | None = run.id if run else None
        # Prefect starts a process for one run and says which; runs inside it have ids of their own.
        # Source: prefect runner/_starter_engine.py, runner/_workspace_supervisor.py, 3.8.8.
        self.owns_process = run is not None and os.environ.get("PREFECT__FLOW_RUN_ID") == str(run.id)
        if context is not None:
            groups.remember(context.task_runner)
        self._artifact: UUID | None = None
        self._news: SyncPrefectClient | None = None
        self._pools: dict[tuple[str, ...], SlotPool] = {}
        self._rates: dict[tuple[str, ...], RateLine] = {}
        self._limits_lock = threading.Lock()
        self._waits = True

    def masking(self, names: Sequence[str]) -> None:
        """Mask the values of those environment variables too, from now on."""
        self._masked_env = tuple(names)

    def mask(self, text: str) -> str:
        return mask(text, self._masked_env)

    # ------------------------------------------------------------------ news

    def publish(self, percent: float, metadata: Mapping[str, str]) -> None:
        if self._news is None:
            self._news = get_client(sync_client=True)  # kept: a client takes longer to make than a request
            self._news.__enter__()
        if self._artifact is None:
            created = self._news.create_artifact(
                ArtifactCreate(
                    type=ARTIFACT_TYPE, data=percent, metadata_=dict(metadata), flow_run_id=self._run_id,
                    description="Items of this batch that have ended, in percent",
                )
            )  # fmt: skip
            self._artifact = created.id
        else:
            self._news.update_artifact(self._artifact, ArtifactUpdate(data=percent, metadata_=dict(metadata)))

    def close_news(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.__exit__(None, None, None)

    # ------------------------------------------------------------------ limits

    def check_limits(self, names: Sequence[str], rates: Sequence[str]) -> None:
        if not names and not rates:
            return
        with get_client(sync_client=True) as client:
            for field, wanted in (("concurrency_limits", names), ("rate_limits", rates)):
                for name in wanted:
                    try:
                        limit = client.read_global_concurrency_limit_by_name(name)
                    except ObjectNotFound:
                        limit = None
                    if (why := trouble(field, name, limit)) is not None:
                        raise ConfigurationError(why, field=field)

    @contextmanager
    def hold(self, names: Sequence[str]) -> Iterator[None]:
        pool = self._pool(names)
        slot = pool.ask().result()
        try:
            yield
        finally:
            pool.give_back(slot)

    @asynccontextmanager
    async def ahold(self, names: Sequence[str]) -> AsyncIterator[None]:
        pool = self._pool(names)
        asked = pool.ask()
        try:
            slot = await asyncio.wrap_future(asked)
        except BaseException:
            if not asked.cancel() and asked.exception() is None:
                pool.give_back(asked.result())  # it came at the moment in which this item was cancelled
            raise
        try:
            yield
        finally:
            pool.give_back(slot)

    def take(self, names: Sequence[str]) -> None:
        self._rate(names).ask().result()

    async def atake(self, names: Sequence[str]) -> None:
        await asyncio.wrap_future(self._rate(names).ask())

    def stop_waiting(self) -> None:
        with self._limits_lock:
            self._waits = False
            lines = [*self._pools.values(), *self._rates.values()]
        for line in lines:
            line.stop_waiting()

    def close_limits(self) -> None:
        for line in [*self._pools.values(), *self._rates.values()]:
            line.close(_DRAIN_SECONDS)

    def _pool(self, names: Sequence[str]) -> SlotPool:
        with self._limits_lock:
            if (pool := self._pools.get(tuple(names))) is None:
                holder = None if self._run_id is None else ConcurrencyLeaseHolder(type="flow_run", id=self._run_id)
                pool = SlotPool(names, impatient_client, holder=holder, say=self._debug)
                self._pools[tuple(names)] = pool
            waits = self._waits
        if not waits:
            pool.stop_waiting()
        return pool

    def _rate(self, names: Sequence[str]) -> RateLine:
        with self._limits_lock:
            if (rate := self._rates.get(tuple(names))) is None:
                rate = self._rates[tuple(names)] = RateLine(names, impatient_client, say=self._debug)
            waits = self._waits
        if not waits:
            rate.stop_waiting()
        return rate

    def _debug(self, line: str) -> None:
        self.logger.debug("%s", self.mask(line))

    # ------------------------------------------------------------------ the run's context

    def holds_futures(self, value: Any) -> bool:
        return groups.holds_futures(value)

    def resolve(self, value: Any) -> Any:
        return groups.resolve(value)

    @contextmanager
    def tagged(self, tags: Sequence[str]) -> Iterator[None]:
        with prefect_tags(*tags):
            yield

    def context_for_processes(self) -> bytes | None:
        try:
            return bytes(cloudpickle.dumps(serialize_context()))
        except Exception as error:  # noqa: BLE001 - the work can do without: it only has no run logger there
            self.logger.debug("Items run without the run's context in their processes: %s", self.mask(str(error)))
            return None

    def is_cancelling(self) -> bool:
        if self._run_id is None:
            return False
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(self._run_id).state
        except Exception:  # noqa: BLE001 - asked to choose the better word at the end, no more
            return False
        return state is not None and state.type is StateType.CANCELLING

    # ------------------------------------------------------------------ the last resort

    def end_process(self, state_type: str, name: str | None, message: str) -> None:
        if not self.owns_process:
            return
        self.logger.error("Ending this process: %s", message)
        state: State[Any] = State(type=StateType(state_type), name=name, message=message)
        proposal = threading.Thread(target=self._propose, args=(state,), daemon=True)
        proposal.start()
        proposal.join(_DRAIN_SECONDS)
        self.close_limits()
        _drain_logs()
        os._exit(0)  # 0: the run has its state, and anything else would be told as a crash

    def end_process_after(self, seconds: float) -> None:
        if not self.owns_process:
            return

        def end() -> None:
            time.sleep(seconds)
            _drain_logs()
            os._exit(0)

        threading.Thread(target=end, name="batch-exit", daemon=True).start()

    def _propose(self, state: State[Any]) -> None:
        if self._run_id is None:
            return
        try:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(self._run_id, state)
        except Exception:  # noqa: BLE001 - the ledger says it too, and the process ends in any case
            pass


def _drain_logs() -> None:
    """Send the log lines that are left, for so long at most; in a thread, because this one may be a loop's."""
    drain = threading.Thread(target=APILogWorker.drain_all, kwargs={"timeout": _DRAIN_SECONDS}, daemon=True)
    drain.start()
    drain.join(_DRAIN_SECONDS)


@contextmanager
def entered(context: bytes) -> Iterator[None]:
    """A run's context in another process of its own (from `context_for_processes`)."""
    with hydrated_context(cloudpickle.loads(context)):
        yield
