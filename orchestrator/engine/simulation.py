"""A simulated engine: Prefect's server, a work pool and its worker, in memory and on the running loop's clock.

It keeps what matters to a parent as Prefect 3.8.8 behaves: the transition table, idempotency keys that are unique per
flow for ever, limits that count Pending and Running but not Cancelling, Late as a mere name, a cancel of a Pending run
that nobody finalises, final states that flip. Its children are coroutines. Several gateways may share one engine, as
several parents share one server.
"""

from __future__ import annotations

import asyncio
import contextvars
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.core.model import Phase, Progress, RunId
from orchestrator.engine.faults import NO_FATE, Faults, ProgressFault
from orchestrator.engine.gateway import Deployment, Run, Submission
from orchestrator.engine.simulated import TYPICAL, Child, Latencies, Record, SimulatedRun
from orchestrator.engine.transitions import Answer, answer

_EPOCH = datetime(2025, 1, 1, tzinfo=UTC)
_LATE_AFTER_SECONDS = 15.0  # PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS
_HOLDS_SLOT = frozenset({Phase.PENDING, Phase.RUNNING})  # not CANCELLING: engine-facts 1.6


class SimulatedEngine:
    """The engine behind a `MemoryGateway`.

    Args:
        child: What every child run does; returns the phase it ends in. An exception makes the run Failed.
        capacity: Slots of the pool; None for no limit.
        latencies: How long things take.
        faults: What goes wrong.

    Attributes:
        unsettled, max_unsettled: Runs that have not ended, now and at most so far.
        created_at: The loop's time of each creation, in order.
        pages, events: What was published, by (run id, key); and the newest 10,000 events (name, job, payload).
        paused: The pool starts nothing more while True.
    """

    def __init__(
        self,
        child: Child,
        *,
        capacity: int | None = None,
        latencies: Latencies = TYPICAL,
        faults: Faults | None = None,
    ) -> None:
        self.child, self.capacity, self.latencies = child, capacity, latencies
        self.faults = faults or Faults()
        self.unsettled = self.max_unsettled = 0
        self.created_at: array[float] = array("d")
        self.pages: dict[tuple[str | None, str], str] = {}
        self.events: deque[tuple[str, str, Mapping[str, Any]]] = deque(maxlen=10_000)
        self.deployments: dict[str, Deployment] = {}
        self._paused = False
        self._records: dict[RunId, Record] = {}
        self._keys: dict[str, dict[str, RunId]] = {}
        self._queue: deque[Record] = deque()
        self._busy = 0
        self._pump_timer: asyncio.TimerHandle | None = None
        self._context = contextvars.copy_context()  # what goes on here is no part of whoever happens to call
        self.deploy("simulated/batches")

    # -- set-up and control

    def deploy(self, name: str, *, flow_id: str | None = None, is_batch_flow: bool = True) -> Deployment:
        """Register a deployment; deployments of one flow share the scope of idempotency keys."""
        flow_name = name.partition("/")[0]
        deployment = Deployment(
            id=f"deployment:{name}", name=name, flow_id=flow_id or f"flow:{flow_name}", flow_name=flow_name,
            pool="simulated", pool_type="process", queue="default", parameter_schema={}, is_batch_flow=is_batch_flow,
        )  # fmt: skip
        self.deployments[name] = deployment
        return deployment

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, value: bool) -> None:
        self._paused = value
        if not value:
            self._pump_soon()

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def created_after(self, moment: float) -> int:
        """Runs created later than that moment of the loop's clock."""
        return sum(1 for at in reversed(self.created_at) if at > moment)

    def runs(self) -> Iterator[Run]:
        """Every run that exists, in the order of creation."""
        return (self._view(record) for record in list(self._records.values()))

    def read(self, run_id: RunId) -> Run | None:
        record = self._records.get(run_id)
        return None if record is None else self._view(record)

    def tags_of(self, run_id: RunId) -> tuple[str, ...]:
        """The tags of a run that has not ended."""
        record = self._records.get(run_id)
        return () if record is None or record.submission is None else tuple(record.submission.tags)

    def id_of(self, flow_id: str, key: str) -> RunId | None:
        return self._keys.get(flow_id, {}).get(key)

    def delete(self, run_id: RunId) -> None:
        """Somebody deletes the run: its record is gone, its process goes on (nobody told it)."""
        if (record := self._records.pop(run_id, None)) is None:
            return
        self._keys[record.flow_id].pop(record.key, None)
        self._count(record.phase, Phase.CANCELLED)

    def crash(
        self, run_id: RunId, message: str = "Flow run infrastructure exited with non-zero status code 137."
    ) -> None:
        """The run's process dies and its worker says so."""
        if record := self._records.get(run_id):
            self._kill(record)
            record.message = message
            self.propose(run_id, Phase.CRASHED)

    def vanish(self, run_id: RunId) -> None:
        """The run's process dies together with its worker: the record stays as it was."""
        if record := self._records.get(run_id):
            self._kill(record)

    def cancel(self, run_id: RunId) -> tuple[Answer, Phase] | None:
        """Propose CANCELLING, and let the worker act on it; None when there is no such run."""
        if (record := self._records.get(run_id)) is None:
            return None
        result = self.propose(run_id, Phase.CANCELLING)
        if result[0] is Answer.ACCEPT:
            wait = self.latencies
            self._later(wait.cancelling_timeout, self._time_out_cancelling, record)
            if record.task is None and record.fate.resurrect_after is not None:
                # PREFECT_WORKER_ENABLE_CANCELLATION: the worker says Cancelled while the process is coming up.
                self._later(wait.cancel, self._finish_cancel, record)
            elif record.task is not None and record.fate.deaf:
                self._befalls("run deaf to its cancel")
            elif record.task is not None:
                self._later(wait.cancel, self._deliver_cancel, record)
        return result

    def resurrect(self, run_id: RunId) -> None:
        """A run said to be over runs (again): final states are not for ever."""
        if (record := self._records.get(run_id)) and self.propose(run_id, Phase.RUNNING)[0] is Answer.ACCEPT:
            self._run_child(record)

    def propose(self, run_id: RunId, phase: Phase, name: str | None = None) -> tuple[Answer, Phase]:
        """Set a state as anybody may through the API; the answer, and the phase the run is in afterwards.

        Raises:
            KeyError: there is no such run.
        """
        record = self._records[run_id]
        said, now_in = answer(record.phase, phase)
        if now_in is not record.phase or said is Answer.ACCEPT:
            self._enter(record, now_in, name)
        return said, now_in

    def force(self, run_id: RunId, phase: Phase) -> None:
        """Set a state without any rule, as `force=True` does through the API."""
        self._enter(self._records[run_id], phase)

    def report(self, run_id: RunId, progress: Progress) -> None:
        """Publish progress of a run from outside its process."""
        self.publish(self._records[run_id], progress)

    async def shut_down(self) -> None:
        """End every simulated process; records stay."""
        tasks = [record.task for record in self._records.values() if record.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what the gateway asks

    def send(self, submission: Submission, delay: float) -> asyncio.Future[Run | None]:
        """A creation on its way, carried out after so many seconds even when its sender is gone by then.

        Returns:
            What the server answers; None when the deployment does not exist any more.
        """
        answer_: asyncio.Future[Run | None] = asyncio.get_running_loop().create_future()
        self._later(delay, self._arrive, submission, answer_)
        return answer_

    def _arrive(self, submission: Submission, answer_: asyncio.Future[Run | None]) -> None:
        known = submission.deployment.name in self.deployments
        run = self.create(submission) if known else None
        if not answer_.done():
            answer_.set_result(run)

    def create(self, submission: Submission) -> Run:
        """The run of that key: a new one, or the old one whatever became of it."""
        keys = self._keys.setdefault(submission.deployment.flow_id, {})
        if (known := keys.get(submission.key)) is not None:
            return self._view(self._records[known])
        now = self.now()
        run_id = RunId(f"00000000-0000-4000-8000-{len(self.created_at):012x}")
        record = Record(run_id, submission, self.faults.fate(submission), now)
        self._records[run_id], keys[submission.key] = record, run_id
        self.created_at.append(now)
        self.unsettled += 1
        self.max_unsettled = max(self.max_unsettled, self.unsettled)
        self._queue.append(record)
        self._pump_soon()
        return self._view(record)

    def listen(self, run_id: RunId) -> asyncio.Future[None] | None:
        """A future that is done when the run enters a final phase; None when there is no such run."""
        if (record := self._records.get(run_id)) is None:
            return None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if record.phase.is_terminal:
            future.set_result(None)
        else:
            record.waiters = [waiter for waiter in record.waiters or () if not waiter.done()] + [future]
        return future

    def progress_of(self, run_id: RunId) -> list[Progress]:
        record = self._records.get(run_id)
        if record is None or record.progress is None:
            return []
        again, record.repeat = record.repeat, False
        return [record.progress] * (2 if again else 1)

    def publish(self, record: Record, progress: Progress) -> None:
        """Take a child's report, as far as the faults let it through."""
        fault = self.faults.progress()
        if fault is ProgressFault.LOST:
            return
        if fault is ProgressFault.LATE:
            self._later(self.faults.late_seconds, setattr, record, "progress", progress)
            return
        if fault is ProgressFault.SWAPPED:
            record.held_back = progress
            return
        record.progress, record.repeat = progress, fault is ProgressFault.REPEATED
        if record.held_back is not None:
            record.progress, record.held_back = record.held_back, None

    # -- the inside

    def _later(self, delay: float, act: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay, act, *args, context=self._context)

    def _view(self, record: Record) -> Run:
        name = record.state_name
        if record.phase is Phase.SCHEDULED and name == "Scheduled" and self.now() - record.since > _LATE_AFTER_SECONDS:
            name = "Late"
        return Run(
            id=record.id, name=record.name, key=record.key, deployment_id=record.deployment_id, phase=record.phase,
            state_name=name, since=_EPOCH + timedelta(seconds=record.since), message=record.message,
            started=record.started,
        )  # fmt: skip

    def _count(self, before: Phase, after: Phase) -> None:
        self.unsettled += before.is_terminal - after.is_terminal
        self._busy += (after in _HOLDS_SLOT) - (before in _HOLDS_SLOT)
        if before in _HOLDS_SLOT and after not in _HOLDS_SLOT:
            self._pump_soon()

    def _enter(self, record: Record, phase: Phase, name: str | None = None) -> None:
        before = record.phase
        self._count(before, phase)
        self.max_unsettled = max(self.max_unsettled, self.unsettled)
        record.phase, record.state_name, record.since = phase, name or phase.value.capitalize(), self.now()
        if phase is Phase.RUNNING:
            record.started = True
        if phase is Phase.SCHEDULED:  # a rerun, or a resumed pause
            self._queue.append(record)
            self._pump_soon()
        if phase.is_terminal:
            for waiter in record.waiters or ():
                if not waiter.done():
                    waiter.set_result(None)
            record.waiters = None
            resurrects = record.fate.resurrect_after is not None and record.task is None
            if resurrects and (before, phase) == (Phase.CANCELLING, Phase.CANCELLED):
                delay, record.fate = record.fate.resurrect_after or 0.0, NO_FATE
                self._befalls("run resurrected")
                self._later(delay, self.resurrect, record.id)
            elif record.task is None:
                record.submission = None

    def _pump_soon(self) -> None:
        if self._queue and self._pump_timer is None and not self._paused:
            self._pump_timer = self._later(self.latencies.pickup, self._pump)

    def _pump(self) -> None:
        """One poll of the worker: as many scheduled runs as the limit leaves become Pending."""
        self._pump_timer = None
        while self._queue and not self._paused and (self.capacity is None or self._busy < self.capacity):
            record = self._queue.popleft()
            if self._records.get(record.id) is not record or record.phase is not Phase.SCHEDULED:
                continue
            self._enter(record, Phase.PENDING)
            if record.fate.stuck_pending:
                self._befalls("run stuck pending")
            else:
                self._later(self.latencies.start * record.fate.start_factor, self._start, record)

    def _start(self, record: Record) -> None:
        """The run's process is up and proposes Running; refused, it ends without a word."""
        if self._records.get(record.id) is not record or record.phase is not Phase.PENDING:
            return
        if self.propose(record.id, Phase.RUNNING)[0] is not Answer.ACCEPT:
            return
        fate = record.fate
        self._run_child(record)
        for after, what, act in (
            (fate.crash_after, "run crashed", self.crash),
            (fate.vanish_after, "run vanished", self.vanish),
            (fate.delete_after, "run deleted", self.delete),
            (fate.cancel_after, "run cancelled by hand", self.cancel),
            (fate.pause_after, "run paused", self._pause),
            (fate.false_crash_after, "run said to have crashed", self._say_crashed),
        ):
            if after is not None:
                self._later(after, self._befall, record, what, act)

    def _befall(self, record: Record, what: str, act: Callable[[RunId], object]) -> None:
        if not record.phase.is_terminal:
            self._befalls(what)
            act(record.id)

    def _befalls(self, what: str) -> None:
        self.faults.injected[what] += 1

    def _pause(self, run_id: RunId) -> None:
        if record := self._records.get(run_id):
            self._kill(record)
            self.propose(run_id, Phase.PAUSED)

    def _say_crashed(self, run_id: RunId) -> None:
        if run_id in self._records:
            self.propose(run_id, Phase.CRASHED)

    def _run_child(self, record: Record) -> None:
        if record.submission is not None and record.task is None:
            record.run = SimulatedRun(self, record, record.submission)
            loop, context = asyncio.get_running_loop(), self._context.copy()
            record.task = loop.create_task(self._live(record, record.run), context=context)

    async def _live(self, record: Record, run: SimulatedRun) -> None:
        """The process of one child, from its first line to its last state."""
        phase = Phase.CRASHED
        try:
            phase = await self.child(run)
        except asyncio.CancelledError:
            return  # killed: whoever did it says what became of the run
        except Exception as error:  # noqa: BLE001 - a flow's exception is the flow's end, as in Prefect
            phase, run.message = Phase.FAILED, f"Flow run encountered an exception: {type(error).__name__}: {error}"
        finally:
            record.task = record.run = None
            if record.phase.is_terminal:
                record.submission = None
        if self._records.get(record.id) is record:
            self._end(record, run, phase)

    def _end(self, record: Record, run: SimulatedRun, phase: Phase) -> None:
        # A run that is being cancelled can only become Cancelled, whatever its flow returned: the worker says it.
        if record.phase is Phase.CANCELLING:
            phase, run.state_name = Phase.CANCELLED, None
        said, _ = answer(record.phase, phase)
        if said is Answer.ACCEPT:
            record.message = run.message
            self.propose(record.id, phase, run.state_name)

    def _kill(self, record: Record) -> None:
        if record.task is not None:
            record.task.cancel()

    def _deliver_cancel(self, record: Record) -> None:
        if record.phase is not Phase.CANCELLING:
            return
        if record.run is not None and record.run.hear_cancel():
            self._later(self.latencies.kill_grace, self._finish_cancel, record)
        else:
            self._finish_cancel(record)

    def _finish_cancel(self, record: Record) -> None:
        if self._records.get(record.id) is record and record.phase is Phase.CANCELLING:
            self._kill(record)
            self.propose(record.id, Phase.CANCELLED)

    def _time_out_cancelling(self, record: Record) -> None:
        # The server's own timeout ends the record, never the process.
        if self._records.get(record.id) is record and record.phase is Phase.CANCELLING:
            self.propose(record.id, Phase.CANCELLED)
