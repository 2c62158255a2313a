"""A simulated child run: a process that behaves as a batch flow does (`orchestrator/batchrun`), on a real ledger.

It looks at the job folder every few seconds (stop, revocation, the parent's sign of life), waits for earlier attempts
to let go, takes over what they finished, runs its items, isolates those that kill it, gives signs of life and
progress, and ends with its last word. It can also die with an item, hang in one, stand still for a while and go on as
if nothing had been, and outlive its run's record.
"""

from __future__ import annotations

import asyncio
import random

from orchestrator.batchrun.isolation import Order, order
from orchestrator.core.model import EndReason, Item, ItemOutcome, Phase, Progress, StopMode
from orchestrator.engine.simulated import SimulatedRun
from orchestrator.errors import AttemptTakenError, OrchestratorError, StorageError, StoreUnavailableError
from orchestrator.store import Counting, EndRecord, JobFolder, Ledger, OutcomeRecord
from orchestrator.store.layout import REPORT
from tests.simulation.world import FENCE, GRACE, Execution, Storage, World

LEASE = 60.0
NEWS = 2.0


class Children:
    """Makes a child of each run."""

    def __init__(self) -> None:
        self.world: World | None = None

    async def __call__(self, run: SimulatedRun) -> Phase:
        assert self.world is not None
        return await Child(self.world, run).live()


class Child:
    """One process."""

    def __init__(self, world: World, run: SimulatedRun) -> None:
        self.world, self.run = world, run
        reference = run.reference
        self.reference, self.batch, self.attempt = reference, reference.batch, reference.attempt
        self.folder = JobFolder(Storage(reference.folder, world, None, "child"))
        self.was_frozen = False
        self.is_blind = False  # its last look at the folder failed
        self.closed: EndReason | None = None
        self._thawed: asyncio.Event | None = None
        self._ledger: Ledger | None = None
        self._counting = Counting()
        self._progress: dict[int, tuple[Item, Execution]] = {}
        self._over = False
        self._lease: tuple[int, int] | None = None
        self._lease_at = world.now()
        self._signs, self._signed_at = 0, -1e9
        self._told, self._sequence = world.now(), 0
        self._work: asyncio.Task[None] | None = None
        self._finishes = False
        self._gate = asyncio.Event()

    # ------------------------------------------------------------------ its life

    async def live(self) -> Phase:
        world = self.world
        world.children[self.run.id] = self
        world.children_of[self.batch].append(self)
        self._maybe_freeze()
        try:
            return await self._attempt()
        except (AttemptTakenError, StoreUnavailableError, StorageError) as e:
            world.tell(self.batch, f"attempt {self.attempt}: ends by {type(e).__name__}: {e}")
            if self._ledger is not None:
                self._ledger.close()
            return Phase.FAILED
        finally:
            self._over = True
            if self._work is not None:
                self._work.cancel()
            for _, execution in self._progress.values():
                execution.end = world.now()
            self._progress.clear()
            if world.children.get(self.run.id) is self:
                del world.children[self.run.id]
            world.children_of[self.batch].remove(self)
            world.tell(self.batch, f"attempt {self.attempt}: its process is over")

    async def _attempt(self) -> Phase:
        folder, reference = self.folder, self.reference
        if folder.is_revoked(self.batch, self.attempt):
            return self._cancelled(EndReason.REVOKED)
        if folder.store.get(REPORT, 0, 1) is not None or folder.read_end(self.batch, self.attempt) is not None:
            return Phase.FAILED  # it refuses: the job, or this attempt, is over
        self._look()
        staged = folder.read_items(reference)
        if not await self._wait_for_earlier():
            return self._cancelled(self.closed or EndReason.STOPPED)
        self._ledger = Ledger(folder, self.batch, self.attempt, reference.count, start=reference.start)
        carried = self._ledger.open()
        self._counting = Counting(carried.counts)
        left = [item for item in staged if item.index not in carried.outcomes]
        died = folder.died_before(self.batch, self.attempt) if self.attempt else {}
        stop = folder.read_stop()
        if stop is not None and stop.mode is StopMode.CANCEL:
            self._close(EndReason.STOPPED)
        return await self._conduct(left, died)

    async def _conduct(self, left: list[Item], died: dict[int, int | None]) -> Phase:
        cancelled = self.run.cancel_requested
        self._work = asyncio.ensure_future(self._items(left, died))
        told = asyncio.ensure_future(cancelled.wait())
        closed = asyncio.ensure_future(self._gate_and_grace())
        try:
            await asyncio.wait({self._work, told, closed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            closed.cancel()
        await self._while_frozen()
        if self._work.done() and (error := self._work.exception()) is not None:
            raise error
        self._work.cancel()
        counts = self._counting.counts()
        reason = self.closed or EndReason.COMPLETED
        if cancelled.is_set() and not self._work.done():
            reason = EndReason.TERMINATED
        elif counts.settled >= self.reference.count and reason is not EndReason.LEDGER_FAILED:
            reason = EndReason.COMPLETED
        return await self._end(reason)

    async def _end(self, reason: EndReason) -> Phase:
        assert self._ledger is not None
        # As the recorder does: whatever ends later is not written any more.
        in_progress = tuple(sorted(self._progress))
        for _, execution in self._progress.values():
            execution.end = self.world.now()
        self._progress.clear()
        counts = self._counting.counts()
        for tries_left in reversed(range(5)):
            try:
                self._ledger.end(EndRecord(reason, counts, in_progress))
                break
            except StoreUnavailableError:
                if not tries_left:
                    return Phase.FAILED
                await asyncio.sleep(1.0)
        if reason is EndReason.COMPLETED:
            return Phase.FAILED if counts.failed and not counts.succeeded else Phase.COMPLETED
        return Phase.FAILED if reason is EndReason.LEDGER_FAILED else self._cancelled(reason)

    def _cancelled(self, reason: EndReason) -> Phase:
        self.run.state_name = reason.value.title()
        return Phase.CANCELLED

    async def _wait_for_earlier(self) -> bool:
        seen: dict[int, float] = {}
        while self.closed is None:
            if not self.attempt:
                return True
            now, waiting = self.world.now(), False
            for attempt in self.folder.unended_before(self.batch, self.attempt):
                if attempt not in seen and self.folder.is_revoked(self.batch, attempt):
                    seen[attempt] = now
                waiting = waiting or attempt not in seen or now - seen[attempt] < FENCE + GRACE
            if not waiting:
                return True
            await asyncio.sleep(0.5)
            await self._while_frozen()
        return False

    # ------------------------------------------------------------------ the folder, every few seconds

    def _look(self) -> None:
        if self._over:
            return
        if self._thawed is None:
            self._sign()
            if self.closed is None:
                self._look_once()
        self.world._later(FENCE if self._thawed is None else 0.05, self._look)

    def _look_once(self) -> None:
        folder, now = self.folder, self.world.now()
        try:
            if folder.is_revoked(self.batch, self.attempt):
                self._close(EndReason.REVOKED)
                return
            stop = folder.read_stop()
            if stop is not None and stop.mode is StopMode.CANCEL:
                self._close(EndReason.STOPPED)
                return
            lease = folder.read_lease()
            self.is_blind = False
        except (OrchestratorError, OSError):
            lease, self.is_blind = None, True
        if lease is not None and (lease.epoch, lease.counter) != self._lease:
            self._lease, self._lease_at = (lease.epoch, lease.counter), now
            self._finishes = lease.on_loss == "finish"
        if now - self._lease_at > LEASE and not self._finishes:
            self._close(EndReason.LEASE_LOST)

    def _sign(self) -> None:
        now, period = self.world.now(), self.world.alive_seconds
        if not period or now - self._signed_at < period:
            return
        self._signs += 1
        try:
            self.folder.write_alive(self.batch, self.attempt, self._signs)
        except (OrchestratorError, OSError):
            return
        self._signed_at = now

    def _close(self, reason: EndReason) -> None:
        if self.closed is None:
            self.closed = reason
            self._gate.set()
            self.world.tell(self.batch, f"attempt {self.attempt}: starts nothing more ({reason.value})")

    async def _gate_and_grace(self) -> None:
        await self._gate.wait()
        await asyncio.sleep(GRACE)
        await self._while_frozen()

    # ------------------------------------------------------------------ standing still

    def _maybe_freeze(self) -> None:
        world = self.world
        chance = random.Random(f"freeze/{world.scenario.seed}/{self.batch}/{self.attempt}")
        if not world.quiet and chance.random() < world.scenario.freezes:
            world._later(chance.random() * 8, self._freeze, chance.choice((5.0, 30.0, 120.0)))

    def _freeze(self, seconds: float) -> None:
        if self._over or self.world.quiet:
            return
        self.world.inject("child stood still")
        self.world.tell(self.batch, f"attempt {self.attempt}: stands still for {seconds:g} s")
        self._thawed, self.was_frozen = asyncio.Event(), True
        self.world._later(seconds, self._thaw)

    def _thaw(self) -> None:
        if self._thawed is not None:
            self._thawed.set()
            self._thawed = None

    async def _while_frozen(self) -> None:
        while self._thawed is not None:
            await self._thawed.wait()

    # ------------------------------------------------------------------ items

    async def _items(self, left: list[Item], died: dict[int, int | None]) -> None:
        world, request = self.world, self.world.scenario.request
        plan = Order((), (), left)
        if request["isolate_crashing_items"]:
            plan = order(left, died, item_concurrency=world.scenario.item_concurrency, appends=True)
        for item in plan.killers:
            if self.closed is not None:
                return
            world.tell(self.batch, f"attempt {self.attempt}: item {item.index} is failed unrun, it killed its run")
            self._write(OutcomeRecord(item.index, item.key, ItemOutcome.FAILED, 1, "RunDiedError", "it died"), None)
        for item in plan.alone:
            if self.closed is not None:
                return
            try:
                self.folder.write_now(self.batch, self.attempt, item.index)
            except StoreUnavailableError:
                self._close(EndReason.LEDGER_FAILED)
                return
            await self._one(item)
        await self._together(list(plan.together))

    async def _together(self, items: list[Item]) -> None:
        at_once = min(self.world.scenario.item_concurrency, len(items))
        items.reverse()
        if at_once <= 1:
            await self._worker(items)
        else:
            workers = [asyncio.ensure_future(self._worker(items)) for _ in range(at_once)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()

    async def _worker(self, items: list[Item]) -> None:
        while items and self.closed is None and not self._over:
            await self._one(items.pop())

    async def _one(self, item: Item) -> None:
        world, what = self.world, self.world.scenario.items[item.index]
        execution = world.item_started(self, item.index)
        self._progress[item.index] = (item, execution)
        if what.kills:
            await asyncio.sleep(what.seconds / 2)
            self._die(what.kills)
        if what.hangs and self.attempt == 0:
            world.inject("item hung")
            await asyncio.sleep(1e9)
        await asyncio.sleep(what.seconds)
        await self._while_frozen()
        self._finish(item.index)

    def _die(self, how: str) -> None:
        world = self.world
        world.inject(f"item killed its process ({how})")
        self._over = True
        if how == "said":
            world.crash(self.run.id)
        else:
            world.vanish(self.run.id)
        raise asyncio.CancelledError

    def _finish(self, index: int) -> None:
        """The item in progress is done: write it."""
        found = self._progress.get(index)
        if found is None or self._over:
            return  # it was written already, or the attempt's last word is said
        item, execution = found
        what = self.world.scenario.items[index]
        if what.fails == "always" or (what.fails == "first" and self.attempt == 0):
            record = OutcomeRecord(index, item.key, ItemOutcome.FAILED, 1, f"Error{index % 3}", "as planned")
        else:
            record = OutcomeRecord(index, item.key, ItemOutcome.SUCCEEDED, result=[self.attempt, execution.begin])
        self._write(record, execution)

    def _write(self, record: OutcomeRecord, execution: Execution | None) -> None:
        world = self.world
        assert self._ledger is not None
        try:
            taken = self._ledger.record(record)
        except StoreUnavailableError:
            self._close(EndReason.LEDGER_FAILED)
            return  # it stays in progress, without an outcome
        self._progress.pop(record.index, None)
        if execution is not None:
            execution.end = world.now()
            execution.recorded = record.outcome.value if taken else None
        if taken:
            self._counting.add(record)
            if world.lines is not None:
                world.tell(self.batch, f"attempt {self.attempt}: item {record.index} {record.outcome.value}")
            self._report()

    def _report(self) -> None:
        now = self.world.now()
        if now - self._told >= NEWS:
            self._told, self._sequence = now, self._sequence + 1
            self.run.report(Progress(self.batch, self.attempt, self._sequence, self._counting.counts()))

    def write_now(self) -> bool:
        """One of its items ends at this very moment; False when none can."""
        if self._over or self._thawed is not None or self._ledger is None:
            return False
        for index in self._progress:
            what = self.world.scenario.items[index]
            if not what.kills and not (what.hangs and self.attempt == 0):
                self.world.inject("child wrote while its parent read")
                self._finish(index)
                return True
        return False
