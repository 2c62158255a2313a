"""Live progress of a job on stderr: a redrawn block on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.cli.terminal import say, stderr
from orchestrator.reactor.page import duration
from orchestrator.reactor.view import JobView

LINE_SECONDS = 10.0
LOGGER = "prefect.orchestrator"  # where the parent logs outside of flow runs


def counts(view: JobView) -> str:
    """`12,000 items: 8,100 succeeded, 12 failed`."""
    parts = [f"{view.succeeded:,} succeeded", f"{view.failed:,} failed"]
    if view.unknown:
        parts.append(f"{view.unknown:,} unknown")
    if view.not_started:
        parts.append(f"{view.not_started:,} not started")
    return f"{view.total:,} items: " + ", ".join(parts)


def flying(view: JobView) -> str:
    """`batches 31 of 120 over; in flight: 7 Running, 1 Pending`."""
    runs = ", ".join(f"{n} {phase}" for phase, n in sorted(view.in_flight.items())) or "none"
    return f"batches {view.batches_settled:,} of {view.batches_total:,} over; in flight: {runs}"


def pace(view: JobView) -> str:
    """`8.3 items/s, 3 min 2 s left, 1 min 10 s so far`."""
    parts = [f"{view.rate:,.1f} items/s"] if view.rate is not None else []
    if view.eta_seconds is not None:
        parts.append(f"{duration(view.eta_seconds)} left")
    return ", ".join([*parts, f"{duration(view.seconds)} so far"])


def remarks(view: JobView) -> list[tuple[str, str]]:
    """What deserves attention, each with a style."""
    found = []
    if view.first_failure:
        f = view.first_failure
        found.append((f"first failure: {f.item}: {f.type}: {f.text}"[:200], "yellow"))
    if view.paused:
        found.append((f"paused {view.paused}; `orchestrator resume {view.job_id}` goes on", "yellow"))
    if view.waiting_for:
        found.append((f"waiting: {view.waiting_for}", "yellow"))
    if view.stopping:
        how = "letting child runs finish" if view.draining else "cancelling child runs"
        found.append((f"stopping ({how}): {view.stopping}", "red"))
    return found


class _Printed(logging.Handler):
    """Log records as plain lines on a console; while something is drawn live there, above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), markup=False)


class LiveProgress:
    """Give it to `orchestrate_sync(progress=...)`; a context manager around the call."""

    def __init__(self) -> None:
        self._console = stderr()
        self._live: Live | None = None
        self._last_line = 0.0
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        # What the job logs would tear the block: it is printed above it instead, warnings only.
        self._logger = logging.getLogger(LOGGER)
        self._before = (self._logger.handlers, self._logger.level, self._logger.propagate)
        self._logger.handlers, self._logger.propagate = [_Printed(self._console)], False
        self._logger.setLevel(logging.WARNING)
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)
        self._logger.handlers, self._logger.level, self._logger.propagate = self._before

    def __call__(self, view: JobView) -> None:
        """Show this snapshot; the job's id before the first. Called from any thread, at any rate."""
        if view.job_id not in self._said:
            self._said.add(view.job_id)
            self._console.print(f"job {view.job_id}", markup=False)
        if self._live:
            self._live.update(self._block(view), refresh=True)
            return
        if view.paused and f"paused {view.paused}" not in self._said:
            self._said.add(f"paused {view.paused}")
            say(f"paused {view.paused}; `orchestrator resume {view.job_id}` goes on")
        if view.waiting_for and view.waiting_for not in self._said:  # the rest is in the log's warnings
            self._said.add(view.waiting_for)
            say(f"waiting: {view.waiting_for}")
        now = time.monotonic()
        if now - self._last_line >= LINE_SECONDS or (view.total and view.settled == view.total):
            self._last_line = now
            line = f"{counts(view)}; {flying(view)}; {pace(view)}"
            say(line)

    def _block(self, view: JobView) -> Group:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=max(view.total, 1), completed=view.settled, width=40),
            f"{view.settled / view.total:.0%}" if view.total else "100%",
        )
        lines = [Text(counts(view)), Text(flying(view)), Text(pace(view))]
        return Group(bar, *lines, *(Text(text, style=style) for text, style in remarks(view)))
