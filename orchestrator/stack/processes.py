"""The processes of a stack: found by a mark in their environment, ended in order, guarded against our own death.

Prefect starts each flow run in a session of its own, so neither the worker's process group nor its children tell all
that belongs to a stack; a run whose worker was killed has no parent left at all. What every such process does inherit
is the environment: a stack puts a random mark there and finds its processes by it.

The module uses the standard library alone, because it also runs as a script: `python processes.py MARK` is the guard
that ends the marked processes as soon as whoever started it is gone, however it went (SIGKILL included).
Source: prefect runner/_starter_engine.py (start_new_session; the environment is passed on), 3.8.8.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

MARK_VARIABLE = "ORCHESTRATOR_STACK_MARK"
_RELEASE = b"release\n"

# A shell's background job ignores SIGINT and hands that on; a Prefect worker turns SIGTERM into SIGINT for itself, so
# it could never be ended. Restoring the default just before exec keeps the pid and needs no code between fork and exec.
_RESTORE_SIGNALS = (
    "import os,signal,sys;"
    "signal.signal(signal.SIGINT,signal.SIG_DFL);signal.signal(signal.SIGTERM,signal.SIG_DFL);"
    "signal.pthread_sigmask(signal.SIG_SETMASK,());os.execv(sys.argv[1],sys.argv[1:])"
)


def spawn(command: Sequence[str], *, environment: dict[str, str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a process in its own session with default signals; both its outputs are appended to `log`.

    A session of its own means that Ctrl-C in the terminal reaches us alone, and we end the stack in order.
    """
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _RESTORE_SIGNALS, *command],
            env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def marked(mark: str) -> list[int]:
    """Process ids, ours excluded, that were started with that mark in their environment."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    found = _marked_in_proc(wanted) if Path("/proc/self/environ").exists() else _marked_by_ps(wanted)
    return sorted(pid for pid in found if pid != os.getpid())


def _marked_in_proc(wanted: bytes) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            with open(f"/proc/{entry.name}/environ", "rb") as f:
                if wanted in f.read().split(b"\0"):
                    found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    return found


def _marked_by_ps(wanted: bytes) -> list[int]:
    """Where there is no /proc (macOS): `ps -E` prints the environment of one's own processes after the command."""
    listing = subprocess.run(["ps", "-axww", "-E", "-o", "pid=,command="], capture_output=True, check=False).stdout
    return [int(line.split(None, 1)[0]) for line in listing.splitlines() if wanted in line.split()]


def send(pids: Sequence[int], number: signal.Signals) -> None:
    """Signal each process; those already gone are skipped."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def end_marked(mark: str, grace_seconds: float) -> int:
    """End every marked process: SIGTERM, a grace, then SIGKILL until none is left. Returns how many there were.

    Processes that appear meanwhile (a worker that starts one more run) get their SIGTERM as well.
    """
    deadline = time.monotonic() + grace_seconds
    asked: set[int] = set()
    while pids := marked(mark):
        if time.monotonic() < deadline:
            send([p for p in pids if p not in asked], signal.SIGTERM)
        else:
            send(pids, signal.SIGKILL)
        asked.update(pids)
        time.sleep(0.05)
    return len(asked)


class Guard:
    """A small process that ends the marked ones when this one goes away without doing so.

    It holds the reading end of a pipe: end of file means that we are gone. `release` lets the marked processes live on.
    """

    def __init__(self, mark: str, grace_seconds: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, mark, str(grace_seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/",
        )  # fmt: skip

    def release(self) -> None:
        """Send the guard home; the marked processes stay as they are. Calling it again does nothing."""
        if self._process.returncode is None:
            try:
                self._process.communicate(_RELEASE, timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()


def _guard(mark: str, grace_seconds: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.stdin.buffer.read() != _RELEASE:
        end_marked(mark, grace_seconds)


if __name__ == "__main__":
    _guard(sys.argv[1], float(sys.argv[2]))
