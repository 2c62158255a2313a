"""One attempt at one batch, from reference to ending: composes ledger, gate, fence, window and news."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.batchrun.conduct import Chosen, Run
from orchestrator.batchrun.door import Door
from orchestrator.batchrun.ending import Ending, ending, sentence
from orchestrator.batchrun.fence import Fence
from orchestrator.batchrun.isolation import order, with_signal
from orchestrator.batchrun.options import JobSettings, Options
from orchestrator.batchrun.reaching import UnreachableError, reach, unreachable
from orchestrator.batchrun.recorder import printable
from orchestrator.core.model import BatchReference, Counts, EndReason, Item, ItemOutcome, StopMode
from orchestrator.errors import ConfigurationError, JobConflictError, RunDiedError, StoreUnavailableError
from orchestrator.store import EndRecord, JobFolder, Ledger, OutcomeRecord
from orchestrator.store.bounded import within
from orchestrator.store.layout import REPORT
from orchestrator.store.ledger import refuse

_LAST_RESORT_SECONDS = 5.0  # after the grace: by then a run whose loop answers has ended
_LAST_WORD_TRIES = 5
_LAST_WORD_SECONDS = 30.0  # for storage that does not answer any more
_CUT_OFF_EXIT_SECONDS = 60.0  # for Prefect to be told, when whoever lost the storage may have lost Prefect too


class Direct(Run):
    """Items given as a list: nothing is stored, the outcomes are the flow's result."""

    def __init__(self, values: Sequence[Any], chosen: Chosen, door: Door, *, result_max_bytes: int = 65_536) -> None:
        super().__init__(chosen, door)
        self.settings = JobSettings(result_max_bytes=result_max_bytes, lease_seconds=None)
        self.items = [Item(index, str(index), value) for index, value in enumerate(values)]
        self.total = len(self.items)
        self._outcomes: list[OutcomeRecord] = []
        self._record(self._outcomes.append)
        door.check_limits(self.options.concurrency_limits, self.options.rate_limits)
        door.logger.info("%d %s given", self.total, "item" if self.total == 1 else "items")

    def _end(self, reason: EndReason, counts: Counts, in_progress: list[int]) -> Ending:
        known = {record.index: record for record in self._outcomes}
        return ending(reason, counts, self.total, why=self.gate.why, fail_run_when=self.options.fail_run_when,
                      outcomes=[_readable(item, known.get(item.index)) for item in self.items])  # fmt: skip


class Attempt(Run):
    """One attempt at a batch of a job, by reference.

    Args:
        folder: Of the job, which this run reaches.
    """

    def __init__(self, reference: BatchReference, folder: JobFolder, chosen: Chosen, door: Door) -> None:
        super().__init__(chosen, door)
        self.reference = reference
        self.job, self.batch, self.attempt = reference.job, reference.batch, reference.attempt
        self.total = reference.count
        self.tags: tuple[str, ...] = ()
        self._folder = folder
        self._ledger: Ledger | None = None
        self._died: dict[int, int | None] = {}
        self._fence: Fence | None = None

    def open(self) -> Ending | None:
        """Read the job and the items, take over what earlier attempts finished; an ending when nothing is to be run.

        Raises:
            JobConflictError: the job is over, this attempt ended before, or the folder holds another job.
            StorageError, StoreUnavailableError: the folder cannot be read, or not written.
        """
        folder, reference = self._folder, self.reference
        record = folder.read_job()
        if (record.job_id, record.nonce) != (reference.job, reference.nonce):
            raise JobConflictError(
                f"this run belongs to an earlier job named {reference.job!r}, and another job has that name now: "
                "it cannot be run again"
            )
        self.settings = JobSettings.from_spec(record.spec)
        self.door.masking(self.settings.masked_env)
        self.tags = tuple(str(tag) for tag in record.spec.get("tags") or ())
        if folder.is_revoked(self.batch, self.attempt):
            return ending(EndReason.REVOKED, Counts(), self.total)
        self._refuse_what_is_over()
        try:
            self.door.check_limits(self.options.concurrency_limits, self.options.rate_limits)
            self._start_fence()
            staged = folder.read_items(reference)
            if not self._wait_for_earlier():
                return self._cancelled_before_start()
            return self._take_over(staged)
        except ConfigurationError as error:
            self._stop_fence()
            return self._refuse(error)
        except BaseException:
            self._stop_fence()
            raise

    def _refuse(self, error: ConfigurationError) -> Ending:
        """The last attempt: the next one would meet the same changed items, the same missing limit."""
        why = printable(self.door.mask(" ".join(str(error).split())))[:1000]
        self.door.logger.error("Refused: %s", why)
        refuse(self._folder, self.batch, self.attempt, self.reference.start, error, why)
        return Ending("FAILED", "Refused", why)

    def _refuse_what_is_over(self) -> None:
        again = (
            f"to run what failed or is left, start a job with items job:{self.job}?outcome=failed,unknown,not_started"
        )
        if self._folder.store.get(REPORT, 0, 1) is not None:
            raise JobConflictError(f"job {self.job!r} is over, so this run does nothing; {again}")
        if self._folder.read_end(self.batch, self.attempt) is not None:
            raise JobConflictError(f"this batch ended already, so this run does nothing; {again}")

    def _take_over(self, staged: list[Item]) -> Ending | None:
        reference = self.reference
        self._ledger = Ledger(self._folder, self.batch, self.attempt, self.total, start=reference.start)
        carried = self._ledger.open()
        self._record(self._write, carried.counts)
        self.items = [item for item in staged if item.index not in carried.outcomes]
        before = f", {len(carried.outcomes):,} of them done before" if carried.outcomes else ""
        self.door.logger.info(
            "Batch %d of %d of job %s: %s%s", self.batch + 1, reference.batches, self.job,
            f"{self.total:,} {'item' if self.total == 1 else 'items'}", before,
        )  # fmt: skip
        self._died = self._folder.died_before(self.batch, self.attempt) if self.attempt else {}
        # A stop that was written before this run started: nothing of it starts.
        stop = self._folder.read_stop()
        if stop is not None and stop.mode is StopMode.CANCEL:
            self.gate.close(EndReason.STOPPED, stop.reason)
        return None

    def _phases(self) -> Iterator[tuple[Sequence[Item], Options]]:
        if not self.settings.isolate_crashing_items:
            yield self.items, self.options
            return
        plan = order(self.items, self._died, item_concurrency=self.options.item_concurrency,
                     appends=self._folder.store.appends)  # fmt: skip
        for item in plan.killers:
            if self.recorder.start(item):
                self.recorder.fail(item, RunDiedError(self._how_it_died(item)), 1, 0.0)
        if plan.alone:
            self.door.logger.info("%d runs of this batch died: its items are run one by one", len(self._died))
            self.recorder.before_start = self._say_which
            yield plan.alone, replace(self.options, item_concurrency=1)
            self.recorder.before_start = None
        if self.gate.reason is None:
            yield plan.together, self.options

    def _how_it_died(self, item: Item) -> str:
        """What the run of an earlier attempt came to while this item alone was in progress."""
        attempt = max(attempt for attempt, alone in self._died.items() if alone == item.index)
        said = "its run died while this item alone was in progress, as earlier runs had"
        try:
            how = self._folder.how_it_died(self.batch, attempt)
        except StoreUnavailableError:
            how = None
        return f"{said}: {with_signal(how)}" if how else said

    def _say_which(self, item: Item) -> None:
        assert self._ledger is not None
        self._ledger.flush()  # on object stores: what is not sent would be suspected too
        self._folder.write_now(self.batch, self.attempt, item.index)

    def _write(self, outcome: OutcomeRecord) -> None:
        assert self._ledger is not None
        try:
            self._ledger.record(outcome)
        except StoreUnavailableError as error:
            if self._folder.store.appends:
                raise
            # Object stores: it is kept and put again with the last word; without a last word nobody counts on it.
            self.gate.close(EndReason.LEDGER_FAILED, f"outcomes could not be written: {self.recorder.text_of(error)}")

    # ------------------------------------------------------------------ earlier attempts

    def _wait_for_earlier(self) -> bool:
        """Until no earlier attempt can start an item any more; False when the gate closed meanwhile.

        One that wrote its last word is over. One that was given up notices it within one look at the folder, and its
        running items get their grace: so long from when *we* see that it was given up, on our own clock.
        """
        closed = threading.Event()
        self.gate.on_close(closed.set)
        patience = self.settings.fence_seconds + self.settings.item_grace_seconds
        seen: dict[int, float] = {}
        said = False
        while not closed.is_set():
            now = time.monotonic()
            waiting = False
            for attempt in self._folder.unended_before(self.batch, self.attempt) if self.attempt else ():
                if attempt not in seen and self._folder.is_revoked(self.batch, attempt):
                    seen[attempt] = now
                waiting = waiting or attempt not in seen or now - seen[attempt] < patience
            if not waiting:
                return True
            if not said:
                said = True
                self.door.logger.info("Waiting until the previous run of this batch has let go of its items")
            closed.wait(min(0.5, self.settings.fence_seconds))
        return False

    def _cancelled_before_start(self) -> Ending:
        self._stop_fence()
        return ending(self.gate.reason or EndReason.STOPPED, Counts(), self.total, why=self.gate.why)

    # ------------------------------------------------------------------ the fence

    def _start_fence(self) -> None:
        self._fence = Fence(
            self._folder, self.batch, self.attempt, self.gate, interval=self.settings.fence_seconds,
            lease_seconds=self.settings.lease_seconds, alive_seconds=self.settings.alive_seconds,
            overdue_seconds=self.settings.item_grace_seconds + _LAST_RESORT_SECONDS, on_overdue=self._last_resort,
        )  # fmt: skip
        self._fence.start()

    def _stop_fence(self) -> None:
        if self._fence is not None:
            self._fence.stop()

    def _last_resort(self) -> None:
        """The run should be over and is not: its own loop does not answer. Called from the fence's thread."""
        if self._ledger is None or not self.door.owns_process:
            return
        last = self.finish()
        self.door.end_process(last.type, last.name, last.message)

    # ------------------------------------------------------------------ the end

    def _end(self, reason: EndReason, counts: Counts, in_progress: list[int]) -> Ending:
        self._stop_fence()
        why = self.gate.why
        try:
            self._last_word(reason, counts, in_progress)
        except StoreUnavailableError as error:
            reason, why = (
                EndReason.LEDGER_FAILED,
                f"the batch's end could not be written: {self.recorder.text_of(error)}",
            )
        last = ending(reason, counts, self.total, why=why, fail_run_when=self.options.fail_run_when)
        if last.type != "CANCELLED" and self.gate.reason is not None and self.door.is_cancelling():
            # From Cancelling, Prefect takes nothing but Cancelled. Source: core_policy.py, 3.8.8; engine-facts 1.9.
            return Ending("CANCELLED", "Stopped", sentence(counts, self.total))
        return last

    def _last_word(self, reason: EndReason, counts: Counts, in_progress: list[int]) -> None:
        ledger, record = self._ledger, EndRecord(reason, counts, tuple(in_progress))
        assert ledger is not None

        def write() -> None:
            for tries_left in reversed(range(_LAST_WORD_TRIES)):
                try:
                    ledger.end(record)
                    return
                except StoreUnavailableError:
                    if not tries_left:
                        raise
                    time.sleep(1.0)

        if reason is EndReason.LEASE_LOST:
            self.door.end_process_after(_CUT_OFF_EXIT_SECONDS)
        try:
            # Left behind where a large last segment takes longer, nothing is lost: without a last word the parent reads
            # the segments that are there, and has the other items tried again.
            within(_LAST_WORD_SECONDS, write)
        except TimeoutError as error:
            raise StoreUnavailableError(f"no answer within {_LAST_WORD_SECONDS:g} s") from error

    def _abandon(self, error: BaseException) -> None:
        """Leave the truth behind when an exception ends the run: terminated, or an error before the items' end."""
        self._stop_fence()
        counts, in_progress = self.recorder.close()
        if self._ledger is None:
            return
        try:
            if isinstance(error, Exception):
                self._ledger.close()  # no last word: the parent reads what there is, and may start the batch again
                self._ledger.flush()
            else:
                self._ledger.end(EndRecord(EndReason.TERMINATED, counts, tuple(in_progress)))
        except StoreUnavailableError:
            pass  # the records that could be written are there; the rest counts as unknown


# ---------------------------------------------------------------------- composition


def _begin(reference: BatchReference, chosen: Chosen, door: Door) -> Attempt | Ending:
    """The attempt, opened; an ending when nothing is to be run, or the job folder is out of reach."""
    try:
        attempt = Attempt(reference, reach(reference.folder), chosen, door)
        refused = attempt.open()
    except (UnreachableError, StoreUnavailableError) as error:
        return unreachable(reference.folder, error, door)
    return attempt if refused is None else refused


def run_batch(reference: BatchReference, chosen: Chosen, door: Door) -> Ending:
    """One attempt at a batch with a sync function.

    Raises:
        ConfigurationError: see `Attempt.open`.
        BaseException: what terminated the run; the ledger is closed by then.
    """
    attempt = _begin(reference, chosen, door)
    if isinstance(attempt, Ending):
        return attempt
    with door.tagged(attempt.tags):
        attempt.conduct()
    return attempt.finish()


async def arun_batch(reference: BatchReference, chosen: Chosen, door: Door) -> Ending:
    """One attempt at a batch with an async function; see `run_batch`. Storage is read outside of the loop."""
    attempt = await asyncio.to_thread(_begin, reference, chosen, door)
    if isinstance(attempt, Ending):
        return attempt
    with door.tagged(attempt.tags):
        await attempt.aconduct()
    return await asyncio.to_thread(attempt.finish)


def run_items(values: Sequence[Any], chosen: Chosen, door: Door, *, result_max_bytes: int) -> Ending:
    """Items given directly, with a sync function."""
    direct = Direct(values, chosen, door, result_max_bytes=result_max_bytes)
    direct.conduct()
    return direct.finish()


async def arun_items(values: Sequence[Any], chosen: Chosen, door: Door, *, result_max_bytes: int) -> Ending:
    """Items given directly, with an async function."""
    direct = await asyncio.to_thread(lambda: Direct(values, chosen, door, result_max_bytes=result_max_bytes))
    await direct.aconduct()
    return direct.finish()


def _readable(item: Item, record: OutcomeRecord | None) -> dict[str, Any]:
    """An item's outcome as people read it in a flow's result."""
    if record is None:
        return {"index": item.index, "outcome": "not_finished"}
    readable: dict[str, Any] = {"index": item.index, "outcome": record.outcome.value}
    if record.outcome is ItemOutcome.SUCCEEDED:
        readable["result"] = record.result
    else:
        readable["error"] = {"type": record.error_type, "text": record.error_text}
    return readable
