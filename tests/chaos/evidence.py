"""What three witnesses say of a job: its folder, the server, and the items themselves.

The ledger is read here once more, by the rules that docs/job-folder.md prints and without the project's own reader, so
that a mistake of the reader is not shared by its judge.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.chaos_flow import ACCOUNT

_ATTEMPT = re.compile(r"b/(\d+)/a(\d+)\.(jsonl|end|revoked)$")


@dataclass
class Execution:
    """One execution of one item, by its own account; epoch seconds.

    Args:
        end: None when it never said so: its process died, or the item is still at work.
        gone: When its process was first seen to be gone; None while it is there.
    """

    index: int
    batch: int
    attempt: int
    pid: int
    run: str
    start: float
    end: float | None = None
    outcome: str | None = None
    gone: float | None = None

    @property
    def until(self) -> float:
        """When it was over at the latest."""
        return min(t for t in (self.end, self.gone, float("inf")) if t is not None)


@dataclass
class AttemptRecord:
    """What the folder holds of one attempt.

    Args:
        accepts: From its header: attempt -> lines taken over; None without a readable header.
        lines: (index, outcome) of each line; None for one that cannot be read.
        revoked: How many of its lines count, by the parent's word; None when it was not given up.
        revoked_at, ended_at: Epoch seconds; None when there is no such object.
    """

    accepts: dict[int, int] | None = None
    lines: list[tuple[int, str] | None] = field(default_factory=list)
    revoked: int | None = None
    revoked_at: float | None = None
    ended_at: float | None = None


@dataclass
class RunHistory:
    """A child run by the server's word; `key` is its idempotency key, `ended` its first terminal state's time."""

    id: str
    name: str
    key: str
    created: float
    state: str
    ended: float | None

    @property
    def place(self) -> tuple[int, int]:
        """Batch and attempt, from the key."""
        batch, attempt = self.key.rsplit("/", 2)[1:]
        return int(batch), int(attempt)


@dataclass
class Evidence:
    """Everything that is judged.

    Args:
        expected: Item index -> how it ends when nothing goes wrong.
        outcomes: (index, outcome, attempt, error type) by the project's own reader, in its order.
        attempts: Batch -> attempt -> what the folder holds.
        alive: (pid, run id) of processes of child runs that are still there, after their grace.
        quiet_seconds: After a revocation nothing starts any more: a look at the folder, and what a busy machine adds.
        lets_go_seconds: What a next attempt gives the one before it: a look at the folder and the items' grace.
    """

    job: str
    max_in_flight: int
    attempts_allowed: int
    expected: dict[int, str]
    report: Mapping[str, Any] | None
    outcomes: list[tuple[int, str, int | None, str | None]]
    attempts: dict[int, dict[int, AttemptRecord]]
    executions: list[Execution]
    runs: list[RunHistory]
    alive: list[tuple[int, str]] = field(default_factory=list)
    quiet_seconds: float = 7.0
    lets_go_seconds: float = 7.0


def read_attempts(folder: Path) -> dict[int, dict[int, AttemptRecord]]:
    """What a job folder on a local disk holds of each attempt."""
    found: dict[int, dict[int, AttemptRecord]] = {}
    for path in sorted((folder / "b").rglob("a*")):
        name = _ATTEMPT.search(path.as_posix())
        if name is None:
            continue
        record = found.setdefault(int(name[1]), {}).setdefault(int(name[2]), AttemptRecord())
        written = path.stat().st_mtime
        if name[3] == "end":
            record.ended_at = written
        elif name[3] == "revoked":
            record.revoked, record.revoked_at = json.loads(path.read_bytes())["records"], written
        else:
            _read_lines(path.read_bytes(), record)
    return found


def _read_lines(data: bytes, record: AttemptRecord) -> None:
    lines = data.split(b"\n")[:-1]  # a last line without its newline is not there
    if not lines:
        return
    try:
        record.accepts = {int(k): v for k, v in json.loads(lines[0])["accepts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        record.accepts = None
    for line in lines[1:]:
        if not line:
            continue
        try:
            data_ = json.loads(line)
            record.lines.append((data_["i"], data_["o"]))
        except (ValueError, KeyError, TypeError):
            record.lines.append(None)


def counted(attempts: Mapping[int, AttemptRecord]) -> list[tuple[int, int, str]]:
    """(attempt, index, outcome) of each line of a batch that counts, after "Which lines count" in the docs."""
    found = []
    for number, record in sorted(attempts.items()):
        later = [attempts[k].accepts for k in sorted(attempts) if k > number]
        accepted = next((a for a in later if a is not None), None)
        limit = accepted.get(number, 0) if accepted is not None else record.revoked
        lines = record.lines if limit is None else record.lines[:limit]
        found += [(number, *line) for line in lines if line is not None]
    return found


def read_executions(trace: Path, gone: Callable[[int], float | None]) -> list[Execution]:
    """The items' own account, in the order in which they began.

    Args:
        gone: When the process of that number was first seen to be gone.
    """
    path = trace / ACCOUNT
    found: list[Execution] = []
    running: dict[tuple[int, int, int], Execution] = {}
    for text in path.read_text().splitlines() if path.exists() else []:
        line = json.loads(text)
        key = (line["index"], line["attempt"], line["pid"])
        if line["event"] == "start":
            running[key] = execution = Execution(*key[:1], line["batch"], key[1], key[2], line["run"], line["at"])
            execution.gone = gone(execution.pid)
            found.append(execution)
        elif key in running:
            running[key].end, running[key].outcome = line["at"], line["outcome"]
    return found


_TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def read_runs(request: Callable[..., Any], job: str) -> list[RunHistory]:
    """The job's child runs with their histories, oldest first.

    Args:
        request: `Stack.request`.
    """
    wanted = {"flow_runs": {"tags": {"all_": [f"job:{job}"]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
    runs: list[dict[str, Any]] = []
    while page := request("POST", "/flow_runs/filter", {**wanted, "offset": len(runs)}):
        runs += page
    found = []
    for run in runs:
        states = request("GET", f"/flow_run_states/?flow_run_id={run['id']}")
        ends = [_seconds(s["timestamp"]) for s in states if s["type"] in _TERMINAL]
        found.append(
            RunHistory(
                run["id"], run["name"], run["idempotency_key"] or "", _seconds(run["created"]), run["state_type"],
                min(ends, default=None),
            )
        )  # fmt: skip
    return sorted(found, key=lambda r: r.created)


def unsettled(runs: Iterable[RunHistory]) -> list[RunHistory]:
    """Those that are in no terminal state."""
    return [run for run in runs if run.state not in _TERMINAL]


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
