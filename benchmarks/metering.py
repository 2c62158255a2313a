"""What a stack spends: CPU of server, worker and child runs, and the requests that its server answered.

CPU is what the kernel says of the processes. A child run's processes are gone when their run is over; what they used
is then with the worker that waited for them. Requests are the lines of the server's own access log (uvicorn's, one per
HTTP request and one per websocket), which costs both sides of a comparison the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from orchestrator.stack import Stack

LOGGED = {"PREFECT_SERVER_LOGGING_LEVEL": "INFO"}
"""Settings of a stack whose requests are to be counted."""

FLUSH_SECONDS = 6.0
"""The server writes events behind the requests that caused them, at most 5 s later."""


@dataclass(frozen=True)
class Spent:
    """CPU seconds and requests since the stack began, or between two moments (`later - earlier`)."""

    server: float
    worker: float
    children: float
    requests: float
    sockets: float

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def cpu(self) -> float:
        return self.server + self.worker + self.children


class Meter:
    """Reads what a stack spent so far."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        found = {pid: psutil.Process(pid).cmdline() for pid in stack.processes()}
        self._server = [psutil.Process(p) for p, words in found.items() if words[-6:-4] == ["server", "start"]]
        self._workers = [psutil.Process(p) for p, words in found.items() if "worker" in words and "start" in words]
        if len(self._server) != 1 or not self._workers:
            raise RuntimeError(f"no server or no worker among {found}")

    def read(self) -> Spent:
        requests, sockets = _count(self._stack.home / "logs" / "server.log")
        worker = [p.cpu_times() for p in self._workers]
        return Spent(
            server=cpu_of(self._server[0]), worker=sum(t.user + t.system for t in worker),
            children=sum(t.children_user + t.children_system for t in worker), requests=requests, sockets=sockets,
        )  # fmt: skip

    def settle(self, deadline_seconds: float = 60.0) -> None:
        """Wait until no child run's process is left and the server has written what it still held."""
        own = {p.pid for p in (*self._server, *self._workers)}
        end = time.monotonic() + deadline_seconds
        while set(self._stack.processes()) - own:
            if time.monotonic() > end:
                raise RuntimeError("processes of child runs did not end")
            time.sleep(0.1)
        time.sleep(FLUSH_SECONDS)


def cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _count(log: Path) -> tuple[int, int]:
    """HTTP requests and websocket upgrades in a server's log."""
    requests = sockets = 0
    with log.open(errors="replace") as lines:
        for line in lines:
            if ' HTTP/1.1" ' in line:
                requests += 1
            elif '"WebSocket ' in line and "[accepted]" in line:
                sockets += 1
    return requests, sockets


@contextmanager
def bench_stack() -> Iterator[Stack]:
    """A stack with the benchmarks' flows deployed, whose requests can be counted."""
    with Stack(settings=LOGGED) as stack:
        stack.deploy(Path(__file__).parent / "prefect.yaml")
        yield stack
