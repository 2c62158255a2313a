"""What others leave in the job folder for the parent: stops, controls, and the number of a newer parent."""

from __future__ import annotations

from typing import Any

from orchestrator.core.killswitch import parse
from orchestrator.core.machine import State
from orchestrator.core.machine import events as ev
from orchestrator.core.model import StopMode, StopRecord
from orchestrator.errors import ConfigurationError
from orchestrator.reactor.job import Job
from orchestrator.reactor.perform import Io


class Notices:
    """Reads them, each once."""

    def __init__(self, job: Job, state: State, io: Io) -> None:
        self._job, self._state, self._io = job, state, io
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
        if (record := await self._io(folder.read_stop)) is not None and not self._knows(record):
            found.append(ev.StopRequested(record, written=True))
        for number, control in await self._io(folder.read_controls, self._controls_read):
            self._controls_read = number
            found.append(_control(control))
        return found

    def _knows(self, record: StopRecord) -> bool:
        return self._state.stop is not None and (self._state.cancelling or record.mode is StopMode.DRAIN)


def _control(data: dict[str, Any]) -> ev.Event:
    """An operator's control as an event; one that makes no sense changes nothing."""
    window, paused, switch = data.get("max_in_flight"), data.get("paused"), data.get("kill_switch")
    try:
        parsed = parse(switch) if isinstance(switch, str) else None
    except ConfigurationError:
        parsed = None
    return ev.ControlChanged(
        max_in_flight=window if type(window) is int and 1 <= window <= 1000 else None,
        paused=paused if isinstance(paused, bool) else None,
        kill_switch=parsed,
    )
