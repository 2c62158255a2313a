"""What others leave in the job folder for the parent: stops, controls, and the number of a newer parent."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from orchestrator.core.machine import State
from orchestrator.core.machine import events as ev
from orchestrator.core.machine.controls import read_control
from orchestrator.core.model import StopMode, StopRecord
from orchestrator.errors import OrchestratorError
from orchestrator.reactor.job import Job
from orchestrator.reactor.perform import Io

logger = logging.getLogger(__name__)


class Notices:
    """Reads them, each once."""

    def __init__(
        self, job: Job, state: State, io: Io, log: logging.Logger | logging.LoggerAdapter[Any] = logger
    ) -> None:
        self._job, self._state, self._io, self._log = job, state, io, log
        self._controls_read = 0

    async def read(self) -> list[ev.Event]:
        """What is new, as events; nothing but `Superseded` once another parent took over.

        Raises:
            StoreUnavailableError, StorageError: the folder cannot be read.
        """
        folder = self._job.folder
        if await self._io(folder.is_superseded, self._job.epoch):
            return [ev.Superseded()]
        found: list[ev.Event] = []
        record = await self._io(folder.read_stop, at_least=True)  # a stronger one is found at a later look
        if record is not None and not self._knows(record):
            found.append(ev.StopRequested(record, written=True))
        try:
            controls = await self._io(folder.read_controls, self._controls_read)
        except (OrchestratorError, OSError):
            if not found:
                raise
            return found  # a stop does not wait until the controls can be read too
        for number, control in controls:
            self._controls_read = number
            event, wrong = read_control(control)
            if wrong:
                self._log.warning("Control %d is ignored where it makes no sense: %s.", number, "; ".join(wrong))
            found.append(event)
        return found

    async def successor(self) -> str | None:
        """Who took the job over, as that parent named itself; None when nobody did."""
        folder, newer = self._job.folder, self._job.epoch + 1
        try:
            if not await self._io(folder.is_superseded, self._job.epoch):
                return None
            return _named(await self._io(folder.read_parent, newer))
        except (OrchestratorError, OSError):
            return _named({})

    def _knows(self, record: StopRecord) -> bool:
        return self._state.stop is not None and (self._state.cancelling or record.mode is StopMode.DRAIN)


def _named(who: Mapping[str, Any]) -> str:
    """A parent as it named itself in the folder; nothing of that is longer than it should be."""
    run, pid, host = (" ".join(str(who[k]).split())[:80] if who.get(k) else "" for k in ("run", "pid", "host"))
    process = f"process {pid} on {host}" if pid and host else ""
    if run:
        return f"parent run {run} ({process})" if process else f"parent run {run}"
    return process or "another parent run"
