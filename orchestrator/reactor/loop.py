"""The parent's loop: events into the machine, commands out of it, until the job is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from orchestrator.core.machine import BatchState, State, step
from orchestrator.core.machine import events as ev
from orchestrator.core.machine.table import Stage
from orchestrator.core.model import BatchOutcome, Reading, StopCause, StopMode, StopRecord, Verdict
from orchestrator.core.report import Report, build_report
from orchestrator.engine.gateway import Gateway
from orchestrator.errors import JobTakenOverError, OrchestratorError, StoreUnavailableError
from orchestrator.reactor.boundaries import Boundary, passed
from orchestrator.reactor.job import Job
from orchestrator.reactor.links import tell_first
from orchestrator.reactor.notices import Notices
from orchestrator.reactor.perform import Io, Performer, Tasks, in_background, read_attempt
from orchestrator.reactor.reach import Reach
from orchestrator.reactor.recording import Recorder
from orchestrator.reactor.showing import Showing
from orchestrator.reactor.silence import Silence
from orchestrator.reactor.trouble import FolderTrouble
from orchestrator.reactor.view import JobView
from orchestrator.reactor.watch import Watch

T = TypeVar("T")
TICK_SECONDS = 1.0
REPORT_PATIENCE_SECONDS = 120.0


class Reactor:
    """Runs one job to its end.

    Args:
        job: What to run.
        gateway: The door to Prefect; left open.
        log: The parent run's logger.
        on_view: Called with a snapshot about once a second, from the loop; must return quickly.
        restored: On resume: what the folder and Prefect say of batches that were asked for before, oldest first.
        io: How the job folder is reached; by default 32 threads.
        recorder: Takes the events that are played; None records nothing.
        unwritable: Gives what kept the parent from writing its last sign of life; None when nothing did.
    """

    def __init__(
        self,
        job: Job,
        gateway: Gateway,
        *,
        log: logging.Logger | logging.LoggerAdapter[Any],
        on_view: Callable[[JobView], None] | None = None,
        restored: Sequence[ev.Event] = (),
        max_waits: int = 50,
        io: Io | None = None,
        recorder: Recorder | None = None,
        unwritable: Callable[[], Exception | None] = lambda: None,
    ) -> None:
        self.state = State(job.setup)
        self._job, self._gateway, self._log = job, gateway, log
        self._restored = restored
        self._io = io or Io()
        self._recorder = recorder
        self._events: asyncio.Queue[ev.Event] = asyncio.Queue()
        self._tasks: Tasks = {}
        self._creating: Tasks = {}
        self._watch = Watch(
            self.state, gateway, self._events.put_nowait, poll_seconds=job.times.poll, max_waits=max_waits,
            own=job.page_run, cancelled=self._cancelled,
        )  # fmt: skip
        self._trouble = FolderTrouble(log, unwritable)
        self._perform = Performer(
            job, gateway, self._io, self._events.put_nowait, self._watch.nudge, lambda: self.state.stop is not None,
            Reach(job, self.state, self._trouble.is_recent),
        )  # fmt: skip
        self._silence = Silence(job, self.state, self._io, self._events.put_nowait, read_at=lambda: self._watch.read_at)
        self._notices = Notices(job, self.state, self._io, log)
        self._showing = Showing(
            job, self.state, gateway, log, on_view=on_view, trouble=self._trouble,
            is_away=lambda: self._watch.unreachable_since is not None,
        )  # fmt: skip
        self._error: BaseException | None = None
        self.report: Report | None = None

    def post(self, event: ev.Event) -> None:
        """Tell the job that something happened; from the reactor's own loop."""
        self._events.put_nowait(event)

    # ------------------------------------------------------------------ the loop

    async def run(self) -> Report:
        """Run the job to its end.

        Raises:
            JobTakenOverError: another parent took the job over meanwhile; nothing was touched since.
        """
        self._began = asyncio.get_running_loop().time()
        if self._recorder is not None:
            self._recorder.start(self._io)
        try:
            await self._begin()
            while not self.state.is_over:
                await self._play(await self._events.get())
                if self._error is not None:
                    raise self._error
            return await self._finish()
        finally:
            await self._close()

    async def _begin(self) -> None:
        for event in self._restored:
            await self._play(event)
        if self._restored:
            passed(Boundary.RESTORE_PLAYED)
        for event in await self._with_patience(self._notices.read):
            self.post(event)
        passed(Boundary.NOTICES_READ)
        self._log.info(
            "Job %s: %d items in %d %s over %s, at most %d child runs at once.",
            self._job.id, self.state.tally.total, len(self._job.batches),
            "batch" if len(self._job.batches) == 1 else "batches", self._job.name, self.state.window,
        )  # fmt: skip
        in_background(self._tasks, self._read_folder(), self._failed)
        await self._play_until(in_background(self._tasks, self._begin_page(), self._failed))
        if self._job.first is not None:
            in_background(self._tasks, tell_first(self._job, self._gateway, self._log), self._failed)
        for work in (self._watch.run(), self._silence.run(), self._tick(), self._showing.run()):
            in_background(self._tasks, work, self._failed)
        await self._play(ev.Started())

    async def _begin_page(self) -> None:
        await self._showing.publish()
        passed(Boundary.PAGE_BEGUN)
        await self._showing.emit("started", {"items": self.state.tally.total, "batches": len(self._job.batches)})
        passed(Boundary.STARTED_EMITTED)

    async def _play_until(self, page: asyncio.Task[Any]) -> None:
        """No child before the page is begun, which is where people look first; but a stop does not wait for it."""
        while True:
            while not self._events.empty():  # a stop that is already written comes before the first child
                await self._play(self._events.get_nowait())
            if self._error is not None:
                raise self._error
            if page.done() or self.state.stop is not None or self.state.is_over:
                return
            news = asyncio.ensure_future(self._events.get())
            try:
                await asyncio.wait([page, news], return_when=asyncio.FIRST_COMPLETED)
                if news.done():
                    await self._play(news.result())
            finally:
                news.cancel()  # of no effect where there was any

    async def _with_patience(self, work: Callable[[], Awaitable[T]], seconds: float = 60.0) -> T:
        """Do what needs the job folder, again and again while it is away; its error once the time is up."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + seconds, 0.2
        while True:
            try:
                return await work()
            except StoreUnavailableError:
                if loop.time() + pause > deadline:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def _play(self, event: ev.Event) -> None:
        at = round(asyncio.get_running_loop().time() - self._began, 3)  # what is recorded is what was used
        self._showing.before(event, at)
        before = self.state.stop
        for command in self._decide(event, at):
            self._do(command)
        if self.state.stop is not before:
            self._watch.nudge()  # whom to cancel, and when, depends on who runs by now
        if isinstance(event, (ev.Submitted, ev.RunSeen)):
            batch = self.state.batches[event.batch]
            if batch.stage in (Stage.IN_FLIGHT, Stage.STOPPING) and batch.run is not None:
                self._watch.listen(batch.index, batch.attempt, batch.run)
        self._silence.hear(event)
        self._showing.after(event)
        if isinstance(event, ev.Submitted):
            passed(Boundary.SUBMIT_PLAYED)

    def _decide(self, event: ev.Event, at: float) -> list[ev.Command]:
        commands: list[ev.Command] | None = None
        try:
            commands = step(self.state, event, at)
            return commands
        finally:
            if self._recorder is not None:
                self._recorder.take(at, event, commands)

    def _do(self, command: ev.Command) -> None:
        """Carry a command out, or begin to."""
        match command:
            case ev.WriteStop(record):
                self._write_stop(record)
            case ev.Submit():
                in_background(self._creating, self._perform.submit(command), self._failed)
            case ev.Resolve():
                in_background(self._tasks, self._perform.resolve(command), self._failed)
            case ev.Cancel():
                in_background(self._tasks, self._perform.cancel(command), self._failed)
            case ev.Recall():
                in_background(self._tasks, self._perform.recall(command), self._failed)
            case ev.Close(batch):
                passed(Boundary.END_READ)
                self._watch.forget(batch)
                in_background(self._tasks, self._perform.close(command), self._failed)
            case ev.Settle(batch, attempt, outcome, reason):
                self._showing.settled(batch, attempt)
                level = logging.DEBUG if outcome is BatchOutcome.COMPLETED else logging.INFO
                self._log.log(level, "Batch %d %s%s", batch + 1, outcome.value, f": {reason}" if reason else "")
                passed(Boundary.BATCH_SETTLED)
            case ev.TryAgain(batch, attempt, reason):
                self._log.warning("Batch %d will be tried again (attempt %d): %s", batch + 1, attempt + 2, reason)
                passed(Boundary.ATTEMPT_LOST)
            case ev.Finish():
                passed(Boundary.FINISH_DECIDED)
            case ev.StandDown():
                pass

    def _write_stop(self, record: StopRecord) -> None:
        """Before anything else, and without giving way: children obey what is written."""
        try:
            self._io.at_once(self._job.folder.request_stop, record)
            passed(Boundary.DRAIN_WRITTEN if record.mode is StopMode.DRAIN else Boundary.STOP_WRITTEN)
        except (OrchestratorError, OSError) as e:
            self._log.error("The stop could not be written yet: %s", e)
            in_background(self._tasks, self._write_stop_later(record), self._failed)
        how = "child runs may finish" if record.mode is StopMode.DRAIN else "child runs are cancelled"
        self._log.warning("Stopping (%s): %s", how, record.reason)
        if record.cause is StopCause.TRIPPED:
            in_background(self._tasks, self._showing.emit("tripped", {"reason": record.reason}), self._failed)

    async def _write_stop_later(self, record: StopRecord) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                await self._io(self._job.folder.request_stop, record)
                return
            except (OrchestratorError, OSError):
                continue

    def _cancelled(self, parent: str) -> ev.Event:
        """Its own run is being cancelled, by Prefect's record: perhaps nobody is left to say so."""
        record = self._job.stop_of_cancelled(parent)
        return ev.Superseded() if record is None else ev.StopRequested(record)

    def _failed(self, error: BaseException) -> None:
        self._error = self._error or error
        self.post(ev.Ticked(0.0))  # wake the loop

    # ------------------------------------------------------------------ by itself

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.post(ev.Ticked(max(0.0, self._watch.read_at - self._began)))
            self._trouble.look(asyncio.get_running_loop().time())
            self._showing.tell_view()

    async def _read_folder(self) -> None:
        while True:
            await asyncio.sleep(self._job.times.fence)
            try:
                for event in await self._notices.read():
                    passed(Boundary.NOTICES_READ)
                    self.post(event)
                self._trouble.unreadable = None
            except (OrchestratorError, OSError) as e:
                self._trouble.unreadable = e
                self._log.debug("The job folder cannot be read now: %s", e)

    # ------------------------------------------------------------------ the end

    async def _finish(self) -> Report:
        if self.state.stood_down:
            raise await self._taken_over()
        await self._last_answers()
        await self._read_what_was_away()
        if self._recorder is not None:
            await self._recorder.close()
            passed(Boundary.JOURNAL_WRITTEN)
        fail_if, completed = self._job.fail_if, self.state.verdict is Verdict.COMPLETED
        report = build_report(
            self.state,
            job_id=self._job.id,
            deployment=self._job.name,
            failed_by_rule=bool(completed and fail_if is not None and fail_if.evaluate(self.state.tally)),
            api_requests=self._gateway.requests,
            storage=self._job.folder.url,
            url=self._job.url,
            retry_of=self._job.first[0] if self._job.first else None,
            age=self._job.age,
        )
        self.report = report = await self._write_report(report)
        # Page and event are for people: however long Prefect takes for them, and if they fail, nothing is lost by it.
        await self._showing.publish_report(report)
        passed(Boundary.PAGE_PUBLISHED)
        told = {"verdict": report.verdict.value, "ok": report.ok, "headline": report.headline}
        await self._showing.emit("finished", told | {"items": asdict(report.items)})
        passed(Boundary.FINISHED_EMITTED)
        level = logging.INFO if report.ok else logging.WARNING
        self._log.log(level, "Job %s %s: %s", self._job.id, report.verdict.value, report.headline)
        self._showing.tell_view()
        return report

    async def _write_report(self, report: Report) -> Report:
        """Into the job folder; where that cannot be done, the report says so, and a later parent writes it."""

        async def write() -> None:
            if await self._io(self._job.folder.is_superseded, self._job.epoch):
                raise await self._taken_over()
            if self.state.stop is not None:  # not written yet when the folder was away: without it the job would go on
                await self._io(self._job.folder.request_stop, self.state.stop)
            await self._io(self._job.folder.write_report, report.to_json())
            passed(Boundary.REPORT_WRITTEN)

        try:
            await self._with_patience(write, REPORT_PATIENCE_SECONDS)
        except StoreUnavailableError as e:
            self._log.error("The report could not be written: %s", e)
            note = f"the report could not be written: {e}; `orchestrator resume {self._job.id}` writes it"
            return replace(report, notes=(*report.notes, note))
        return report

    async def _read_what_was_away(self) -> None:
        """Batches were settled without their ledger: the report counts them as the folder does, once that is back."""
        for batch in [b for b in self.state.batches if b.unread]:

            async def read(batch: BatchState = batch) -> Reading:
                return await self._io(read_attempt, self._job, batch.index, batch.attempt, batch.phase)

            try:
                reading = await self._with_patience(read, REPORT_PATIENCE_SECONDS)
            except StoreUnavailableError:
                return
            except (OrchestratorError, OSError) as e:
                self._log.debug("The outcomes of batch %d cannot be read: %s", batch.index + 1, e)
                continue
            await self._play(ev.Closed(batch.index, batch.attempt, reading))

    async def _taken_over(self) -> JobTakenOverError:
        """One line for people: which job, and who has it now."""
        successor = await self._notices.successor()
        if successor is None:  # a cancelled parent that abandons its job
            return JobTakenOverError(f"job {self._job.id!r} was left to its child runs")
        text = f"job {self._job.id!r} was taken over by {successor}; this run leaves it alone from now on"
        self._log.warning("%s", text[0].upper() + text[1:])
        return JobTakenOverError(text)

    async def _last_answers(self) -> None:
        """A creation still in the air may yet come down: if it does, its child is cancelled."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 5.0
        while (self._creating or not self._events.empty()) and loop.time() < deadline:
            try:
                async with asyncio.timeout(0.5):
                    event = await self._events.get()
            except TimeoutError:
                continue
            await self._play(event)

    async def _close(self) -> None:
        if self._recorder is not None:
            await self._recorder.close()
        await self._watch.close()
        tasks = [*self._tasks, *self._creating]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._io.close()


def failed_stop(reason: str) -> StopRecord:
    """The stop that an error of ours leaves behind, so that children do not run on unwatched."""
    return StopRecord(StopMode.CANCEL, StopCause.FAILED, reason, "parent run")
