"""Recording a parent's events: what happened, when, and what was decided, for `orchestrator replay` and for resuming.

It must never cost the job anything: events are kept in memory, written off the loop, and dropped when there are too
many of them because the storage is away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from orchestrator.core.machine.events import Command, Event
from orchestrator.core.machine.wire import Header, Recorded
from orchestrator.reactor.job import Job
from orchestrator.reactor.perform import Io
from orchestrator.store.journal import JournalWriter

logger = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
WRITE_EVENTS = 1_000  # so many are written at once, without waiting
MOST_WAITING = 20_000  # kept in memory while they cannot be written
LONGEST_SECONDS = 60.0  # between two writes where each makes an object
LAST_SECONDS = 2.0  # what the last write may take: the report waits for it


class Recorder:
    """Records the events of one parent.

    Args:
        job: Whose; its folder takes the events.
    """

    def __init__(self, job: Job) -> None:
        header = Header(job.setup, package_version(), job.epoch, job.nonce)
        self._journal = JournalWriter(job.folder.store, header)
        self._waiting: list[Recorded] = []
        self._number = 0
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._over = self._told = False
        self._io: Io | None = None
        self._task: asyncio.Task[None] | None = None

    def take(self, at: float, event: Event, commands: Sequence[Command] | None) -> None:
        """An event was played.

        Args:
            at: As the machine was given it, in whole milliseconds.
            commands: What came of it; None when it was refused as impossible.
        """
        self._number += 1
        if self._over or len(self._waiting) >= MOST_WAITING:
            return  # its number is missing from what is written: a gap
        self._waiting.append(Recorded(self._number, at, event, commands))
        if len(self._waiting) >= WRITE_EVENTS:
            self._wake.set()

    def start(self, io: Io) -> None:
        """Begin to write what is taken, every few seconds."""
        self._io, self._task = io, asyncio.ensure_future(self._run(io))

    async def close(self) -> None:
        """Write the rest, for a short time; what comes later is not recorded. Closing again does nothing."""
        if self._over or self._io is None or self._task is None:
            return
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self._write(self._io)
        except TimeoutError:
            logger.debug("The last events of the job were not recorded in time")
        finally:
            self._over, self._waiting = True, []
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, io: Io) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            # Where each write makes an object, a long job writes less often: 300 in its first hour, then 60 in each.
            pause = WRITE_SECONDS
            if not self._journal.appends:
                pause = min(max(pause, (loop.time() - began) / 60), LONGEST_SECONDS)
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            if not await self._write(io):
                await asyncio.sleep(pause)

    async def _write(self, io: Io) -> bool:
        """Whether all that waited is written."""
        async with self._writing:
            self._wake.clear()
            if self._over or not self._waiting:
                return True
            taken, self._waiting = self._waiting, []
            try:
                await io(self._journal.write, taken)
            except Exception as e:  # noqa: BLE001 - a record of the job: whatever is wrong with it, the job goes on
                self._waiting = taken + self._waiting
                if not self._told:
                    self._told = True
                    logger.debug("The events of the job cannot be recorded now: %s", e)
                return False
            return True


def package_version() -> str:
    """Of this package; "" where it is not installed."""
    try:
        return version("prefect-batch-orchestrator")
    except PackageNotFoundError:
        return ""
