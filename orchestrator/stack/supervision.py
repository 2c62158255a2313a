"""The processes of one stack, as whoever started it sees them: begun with a log each, waited for, ended in order."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestrator.stack.api import StackError
from orchestrator.stack.processes import MARK_VARIABLE, Guard, end_marked, marked, send, spawn


class Crew:
    """Everything that carries a stack's mark, and the guard that ends it when we are gone.

    Args:
        start_seconds: Deadline of each part's start.
        stop_seconds: Grace that processes get between SIGTERM and SIGKILL.

    Attributes:
        home: Where logs go and processes start; set before the first of them.
        mark: What every process of the stack has in its environment.
        hidden: Words that no error text may show, though a log does (passwords of addresses).
    """

    def __init__(self, start_seconds: float, stop_seconds: float) -> None:
        self.mark = secrets.token_hex(16)
        self.start_seconds, self.stop_seconds = start_seconds, stop_seconds
        self.home: Path | None = None
        self.hidden: tuple[str, ...] = ()
        self._guard: Guard | None = None
        self._started: list[subprocess.Popen[bytes]] = []

    def guard(self) -> None:
        """From here on the marked processes end when this one goes away without ending them."""
        self._guard = Guard(self.mark, self.stop_seconds)

    def release(self) -> None:
        """Send the guard home. Calling it again does nothing."""
        if self._guard:
            self._guard.release()
            self._guard = None

    def log(self, name: str) -> Path:
        assert self.home is not None
        return self.home / "logs" / f"{name}.log"

    def prefect(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start `prefect ...`; its outputs are appended to the log."""
        assert self.home is not None
        # In the home folder, so that no .env, prefect.toml or pyproject.toml of the current one is read.
        process = spawn(
            [sys.executable, "-m", "prefect", *arguments],
            environment={**environment, MARK_VARIABLE: self.mark}, folder=self.home, log=log,
        )  # fmt: skip
        self._started.append(process)
        return process

    def processes(self) -> list[int]:
        """Ids of all running processes of the stack, flow runs and their children included."""
        return marked(self.mark)

    def wait_for(self, holds: Callable[[], bool], complaint: str, log: Path) -> None:
        """Ask until it holds.

        Raises:
            StackError: it did not within `start_seconds`; the text ends with the log's end.
        """
        end = time.monotonic() + self.start_seconds
        while not holds():
            if time.monotonic() > end:
                raise StackError(f"{complaint} ({log}):\n{self.tail(log)}")
            time.sleep(0.05)

    def tail(self, log: Path, begin: int = 0, lines: int = 25) -> str:
        """The last lines of a log, as they may be shown."""
        try:
            text = log.read_bytes()[begin:].decode(errors="replace")
        except OSError:
            return "(no log)"
        for word in self.hidden:
            text = text.replace(word, "***")
        return "\n".join(text.splitlines()[-lines:])

    def end(self, pids: Sequence[int]) -> None:
        """SIGTERM, wait at most the grace, SIGKILL. An interrupt while waiting ends the grace at once."""
        send(pids, signal.SIGTERM)
        end = time.monotonic() + self.stop_seconds
        try:
            while time.monotonic() < end and self._alive(pids):
                time.sleep(0.05)
        finally:
            send(self._alive(pids), signal.SIGKILL)

    def end_all(self, *, grace: bool) -> None:
        """End whatever carries the mark, and collect what is left of our own."""
        end_marked(self.mark, self.stop_seconds if grace else 0)
        if not grace:
            for process in self._started:
                process.wait()
            self._started.clear()

    def _alive(self, pids: Sequence[int]) -> list[int]:
        for process in self._started:
            process.poll()  # a dead child that nobody asked about still looks alive
        return [pid for pid in self.processes() if pid in pids]
