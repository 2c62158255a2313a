"""What runs the items of a batch, with a ledger or without: news around it, and one ending."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.batchrun.awindow import AsyncWindow
from orchestrator.batchrun.door import Door
from orchestrator.batchrun.ending import Ending
from orchestrator.batchrun.gate import Gate
from orchestrator.batchrun.news import News
from orchestrator.batchrun.options import JobSettings, Options
from orchestrator.batchrun.processes import ProcessCall, pickled
from orchestrator.batchrun.recorder import Recorder, Sink
from orchestrator.batchrun.whole import Whole
from orchestrator.batchrun.window import Window
from orchestrator.batchrun.work import Work
from orchestrator.core.model import Counts, EndReason, Item

_HUNG_EXIT_SECONDS = 15.0  # for Prefect to close the run before threads that hang are ended with their process


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the batch flow is: `work` gives its function bound to a job's id, batch and attempt."""

    work: Callable[[str, int, int], Work]
    options: Options


class Run:
    """What runs items, with a ledger (`Attempt`) or without (`Direct`)."""

    def __init__(self, chosen: Chosen, door: Door) -> None:
        self.options, self.door, self._work = chosen.options, door, chosen.work
        self.gate = Gate()
        self.settings = JobSettings()
        self.items: Sequence[Item] = ()
        self.total = 0
        self._finish_lock = threading.Lock()
        self._ending: Ending | None = None

    # ------------------------------------------------------------------ the items

    def conduct(self) -> None:
        """Run the items of a sync function."""
        with self._conducting() as work:
            if self.options.per == "batch":
                self._run(Whole(self.items, work, self.options, self.gate, self.recorder, self.door,
                                grace_seconds=self._grace))  # fmt: skip
                return
            for items, options in self._phases():
                self._run(Window(items, work, options, self.gate, self.recorder, self.door,
                                 grace_seconds=self._grace, new_process=self._new_process(work)))  # fmt: skip

    def _run(self, runner: Whole | Window) -> None:
        try:
            runner.run()
        finally:
            self._leave(runner.hung)

    def _phases(self) -> Iterator[tuple[Sequence[Item], Options]]:
        """Which items run how, one after the other; nothing more once the gate is closed."""
        yield self.items, self.options

    async def aconduct(self) -> None:
        """Run the items of an async function."""
        with self._conducting() as work:
            if self.options.per == "batch":
                whole = Whole(self.items, work, self.options, self.gate, self.recorder, self.door,
                              grace_seconds=self._grace)  # fmt: skip
                try:
                    await whole.arun()
                finally:
                    self._leave(whole.hung)
                return
            for items, options in self._phases():
                window = AsyncWindow(items, work, options, self.gate, self.recorder, self.door,
                                     grace_seconds=self._grace)  # fmt: skip
                try:
                    await window.run()
                finally:
                    self._leave(window.hung)

    def finish(self) -> Ending:
        """Write the last word, once: calling again (from the last resort too) gives the same ending."""
        with self._finish_lock:
            if self._ending is None:
                counts, in_progress = self.recorder.close()
                reason = self.gate.reason or EndReason.COMPLETED
                if counts.settled >= self.total and reason is not EndReason.LEDGER_FAILED:
                    reason = EndReason.COMPLETED  # whatever closed the gate came too late to matter
                self._ending = self._end(reason, counts, in_progress)
                self.door.logger.info("%s", self._ending.message)
            return self._ending

    @contextmanager
    def _conducting(self) -> Iterator[Work]:
        news = News(self.door, self.recorder, job=self.job, batch=self.batch, attempt=self.attempt,
                    interval=self.settings.news_seconds, after=self.settings.news_after_seconds)  # fmt: skip
        news.start()
        self.gate.on_close(self.door.stop_waiting)
        try:
            yield self._work(self.job, self.batch, self.attempt)
        except BaseException as error:
            self._abandon(error)
            raise
        finally:
            self.door.close_limits()
            news.stop()

    def _new_process(self, work: Work) -> Callable[[], ProcessCall] | None:
        if self.options.executor != "processes":
            return None
        payload, context = pickled(work), self.door.context_for_processes()
        return lambda: ProcessCall(payload, context, self.options.item_timeout_seconds)

    def _leave(self, hung: int) -> None:
        if hung:
            self.door.logger.warning("%d of the items could not be interrupted; they end with this process", hung)
            self.door.end_process_after(_HUNG_EXIT_SECONDS)

    @property
    def _grace(self) -> float:
        return self.settings.item_grace_seconds

    # ------------------------------------------------------------------ what differs

    job: str = ""
    batch: int = 0
    attempt: int = 0
    recorder: Recorder

    def _record(self, sink: Sink, carried: Counts | None = None) -> None:
        self.recorder = Recorder(sink, self.gate, self.door, total=self.total, carried=carried,
                                 result_max_bytes=self.settings.result_max_bytes)  # fmt: skip

    def _end(self, reason: EndReason, counts: Counts, in_progress: list[int]) -> Ending:
        raise NotImplementedError

    def _abandon(self, error: BaseException) -> None:
        """An exception ends the run: leave behind what is true."""
