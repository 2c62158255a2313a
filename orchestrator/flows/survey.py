"""What `cleanup` would do in a storage, and why: a list of findings, made by looking only.

Two witnesses must agree before anything of a job is touched: its folder (a report, or no sign of life of its parent,
watched for longer than two beats) and Prefect's record of its parent run. What only one of them says is left alone.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from orchestrator.core.model import Phase, RunId
from orchestrator.engine.gateway import Gateway, Run
from orchestrator.engine.leftovers import ExpectedParent, Leftovers, TaggedRun, run_ids
from orchestrator.errors import EngineError, OrchestratorError
from orchestrator.flows.spans import span_text
from orchestrator.store import JobFolder, JobRecord
from orchestrator.store.inventory import FolderFacts, FolderKind, look
from orchestrator.store.records import Lease

PARENT_FLOW = "orchestrate"
REMAINS_SECONDS = 86_400.0
WATCHED_BEATS = 2.5
_DEFAULT_ID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-\d+")


class Act(StrEnum):
    """What is to be done about a finding."""

    SETTLE = "settle"
    CANCEL = "cancel"
    REMOVE = "remove"
    LEAVE = "leave"  # told, not touched


@dataclass(frozen=True)
class Rules:
    """When something may be touched; all in seconds.

    Args:
        older_than: Folders of jobs that are over for longer are removed; None: none is.
        settle_after: A job whose parent is over is settled so much later; until then it can be resumed.
        beat: Between two signs of life of a parent.
    """

    older_than: float | None = 30 * 86_400.0
    settle_after: float = 3_600.0
    beat: float = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that cleanup would do, or leaves alone, and why.

    Args:
        subject: What it is about, for people.
        age: Seconds since its job (or its parent) was over, or since it was written; None when unknown.
        size: Bytes that a removal frees.
        run: The child run to cancel; of a job to settle its parent's run, if there is one.
        drain: Of a job to settle: nothing of it may be cancelled.
    """

    act: Act
    subject: str
    why: str
    job_id: str | None = None
    age: float | None = None
    size: int | None = None
    folder: FolderFacts | None = field(default=None, repr=False)
    run: Run | None = field(default=None, repr=False)
    drain: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "act": self.act.value, "subject": self.subject, "why": self.why, "job_id": self.job_id,
            "age_seconds": None if self.age is None else round(self.age), "bytes": self.size,
            "run_id": self.run.id if self.run is not None and self.act is not Act.SETTLE else None,
        }  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """All findings.

    Args:
        away: Why Prefect could not be asked; then only folders of jobs that are over were judged. None: it was.
        folders: Job folders there are.
    """

    root: str
    findings: tuple[Finding, ...]
    folders: int
    away: str | None = None

    def of(self, act: Act) -> list[Finding]:
        return [finding for finding in self.findings if finding.act is act]

    @property
    def to_do(self) -> int:
        return sum(finding.act is not Act.LEAVE for finding in self.findings)


@dataclass(frozen=True)
class _Engine:
    """What Prefect says."""

    parents: Mapping[RunId, Run] = field(default_factory=dict)
    expected: Sequence[ExpectedParent] = ()
    children: Sequence[TaggedRun] = ()

    def awaited(self, job_id: str, parent: RunId | None) -> bool:
        """Whether another run is going to be that job's parent."""
        return any(e.job_id == job_id and e.run.id != parent for e in self.expected)

    def of_job(self, record: JobRecord) -> list[Run]:
        """Its child runs that have not ended, known by a key that only its job could give them."""
        return [c.run for c in self.children if is_child_of(c.run, record)]


async def survey(
    root: str,
    rules: Rules,
    gateway: Gateway,
    leftovers: Leftovers,
    *,
    now: Callable[[], float] = time.time,
) -> Survey:
    """Look at everything in a storage and at what Prefect says of it. Takes two beats when a parent may be dead.

    Raises:
        StoreUnavailableError: the storage cannot be listed.
    """
    folders = await asyncio.to_thread(look, root)
    away, engine = None, _Engine()
    try:
        engine = await _ask(folders, gateway, leftovers)
    except EngineError as e:
        away = str(e)
    at = now()
    jobs = [f for f in folders if f.kind is FolderKind.JOB]
    findings: list[Finding] = []
    if away is None:
        findings += await _unfinished([f for f in jobs if not f.over], engine, rules, at)
        findings += _children(jobs, engine, at)
    findings += _old(jobs, engine, rules, at)
    findings += _other(folders, at)
    order = list(Act)
    findings.sort(key=lambda f: (order.index(f.act), -(f.age or 0.0), f.subject))
    return Survey(root, tuple(findings), len(jobs), away)


async def _ask(folders: Iterable[FolderFacts], gateway: Gateway, leftovers: Leftovers) -> _Engine:
    ids = [id_ for f in folders if f.record is not None and not f.over and (id_ := parent_run(f)) is not None]
    return _Engine(
        await gateway.read_runs(ids), await leftovers.expected_parents(PARENT_FLOW), await leftovers.unended_children()
    )


# ------------------------------------------------------------------ jobs without an end


@dataclass(frozen=True)
class _Orphan:
    """A job whose parent seems to be over."""

    facts: FolderFacts
    run: Run | None
    since: float
    why: str
    patience: float  # how long it must have been so before it is settled


async def _unfinished(jobs: Sequence[FolderFacts], engine: _Engine, rules: Rules, at: float) -> list[Finding]:
    orphans = [orphan for facts in jobs if (orphan := _orphan(facts, engine, rules)) is not None]
    found, due = [], []
    for orphan in orphans:
        age = at - orphan.since
        if age >= orphan.patience:
            due.append(orphan)
        elif age >= orphan.facts.lease_seconds or (orphan.run is not None and orphan.run.phase.is_terminal):
            why = (
                f"{orphan.why} {span_text(age)} ago; `orchestrator resume {orphan.facts.name}` goes on with it, "
                f"cleanup settles it {span_text(orphan.patience)} after that"
            )
            found.append(_leave(orphan.facts, why, age))
    silent = await _watch(due, WATCHED_BEATS * rules.beat)
    return found + [_to_settle(orphan, engine, at) for orphan in due if orphan.facts.name in silent]


def _orphan(facts: FolderFacts, engine: _Engine, rules: Rules) -> _Orphan | None:
    """The job, when its parent seems to be over; None while it lives or is still to come."""
    assert facts.record is not None
    id_ = parent_run(facts)
    if engine.awaited(facts.name, id_):
        return None
    run = engine.parents.get(id_) if id_ is not None else None
    seen = facts.sign_of_life if facts.sign_of_life is not None else _created(facts.record)
    silence = max(rules.settle_after, facts.lease_seconds)
    if facts.parent.get("cleanup"):
        return _Orphan(facts, None, seen, "a cleanup that was settling it ended", facts.lease_seconds)
    if id_ is None:
        return _Orphan(
            facts, None, seen, "its parent, a process outside of Prefect, gave its last sign of life", silence
        )
    if run is None:
        return _Orphan(facts, None, seen, "its parent run was deleted; it gave its last sign of life", silence)
    if run.phase.is_terminal:
        ended = max(seen, run.since.timestamp() if run.since is not None else 0.0)
        return _Orphan(facts, run, ended, f"its parent run {run.name} ended ({run.state_name})", rules.settle_after)
    if run.phase in (Phase.RUNNING, Phase.CANCELLING):
        why = f"its parent run {run.name}, said to be {run.state_name}, gave its last sign of life"
        return _Orphan(facts, run, seen, why, silence)
    return None  # Scheduled, Pending or Paused: Prefect will run it again


async def _watch(orphans: Sequence[_Orphan], seconds: float) -> set[str]:
    """Of these jobs the ones whose parent gives no sign of life for so long; watched all at once."""
    if not orphans:
        return set()

    def read() -> dict[str, tuple[Lease | None, int, bool] | None]:
        return {o.facts.name: _pulse(JobFolder(o.facts.url)) for o in orphans}

    before = await asyncio.to_thread(read)
    await asyncio.sleep(seconds)
    after = await asyncio.to_thread(read)
    expected = {o.facts.name: o.facts.epoch for o in orphans}
    return {
        name
        for name, pulse in after.items()
        if pulse is not None and pulse == before[name] and pulse[1] == expected[name] and not pulse[2]
    }


def _pulse(folder: JobFolder) -> tuple[Lease | None, int, bool] | None:
    """What moves while a job has a parent; None when it cannot be read."""
    try:
        return folder.read_lease(), folder.newest_epoch(), folder.read_report() is not None
    except OrchestratorError:
        return None


def _to_settle(orphan: _Orphan, engine: _Engine, at: float) -> Finding:
    facts, age = orphan.facts, at - orphan.since
    assert facts.record is not None
    running = engine.of_job(facts.record)
    why = f"{orphan.why} {span_text(age)} ago"
    abandons = (facts.record.spec.get("job") or {}).get("on_parent_cancelled") in ("abandon", "drain")
    if abandons and running:
        return _leave(facts, f"{why}; {_runs(len(running))} finish their batch, as was asked for", age)
    if running:
        why += f"; {_runs(len(running))} not over"
    return Finding(
        Act.SETTLE, f"job {facts.name}", why, facts.name, age, facts.size, facts, orphan.run, drain=abandons
    )  # fmt: skip


def parent_run(facts: FolderFacts) -> RunId | None:
    """The flow run that is a job's newest parent; None for a process outside of Prefect."""
    if "run_id" in facts.parent:
        return next(iter(run_ids([str(facts.parent["run_id"])])), None)
    # Of an earlier version, or dead before it said who it is: the id of a job that has no other names the run.
    match = _DEFAULT_ID.fullmatch(facts.name)
    return RunId(match[1]) if match else None


# ------------------------------------------------------------------ child runs, folders


def is_child_of(run: Run, record: JobRecord) -> bool:
    """Whether a run is a child of that job: its key holds the job's random nonce and one of its batches."""
    parts = (run.key or "").split("/")
    if len(parts) != 4 or parts[:2] != [record.job_id, record.nonce]:
        return False
    return all(part.isascii() and part.isdigit() for part in parts[2:]) and int(parts[2]) < record.batches


def _children(jobs: Sequence[FolderFacts], engine: _Engine, at: float) -> list[Finding]:
    """Child runs of jobs that are over, and runs that only look like ours."""
    known = {facts.name: facts for facts in jobs}
    found = []
    for child in engine.children:
        facts, run = known.get(child.job_id), child.run
        subject = f"run {run.name} ({run.state_name})"
        if facts is None or facts.record is None or not is_child_of(run, facts.record):
            why = "no job of this storage" if facts is None else f"not started by job {facts.name}"
            found.append(Finding(Act.LEAVE, subject, f"not ours: it carries our tags, but is of {why}", run=run))
        elif facts.over and not facts.reason:
            age = None if facts.over_at is None else at - facts.over_at
            found.append(_left_over(subject, run, facts, age, at))
    return found


def _left_over(subject: str, run: Run, facts: FolderFacts, age: float | None, at: float) -> Finding:
    why = f"its job {facts.name} is over" + ("" if age is None else f" for {span_text(age)}")
    if run.phase is Phase.CANCELLING:
        asked = "" if run.since is None else f" {span_text(at - run.since.timestamp())} ago"
        why += f"; its cancel was requested{asked}, Prefect ends it by its own timeout"
        return Finding(Act.LEAVE, subject, why, facts.name, age, run=run)
    if age is not None and run.phase is Phase.RUNNING and age > _end_seconds(facts):
        why += "; its process seems to be gone"
    return Finding(Act.CANCEL, subject, why, facts.name, age, run=run)


def _old(jobs: Sequence[FolderFacts], engine: _Engine, rules: Rules, at: float) -> list[Finding]:
    """Folders of jobs that are over for long, and jobs whose report cannot be read."""
    needed = {id_: facts.name for facts in jobs if not facts.over for id_ in _earlier_jobs(facts)}
    found = []
    for facts in jobs:
        if not facts.over or facts.record is None:
            continue
        if facts.reason:
            found.append(_leave(facts, f"its report is damaged: {facts.reason}"))
            continue
        age = at - (facts.over_at if facts.over_at is not None else _created(facts.record))
        if rules.older_than is None or age < rules.older_than:
            continue
        if facts.name in needed:
            found.append(_leave(facts, f"job {needed[facts.name]}, which is not over, works on its items", age))
        elif not engine.of_job(facts.record):
            why = f"over for {span_text(age)}"
            found.append(
                Finding(Act.REMOVE, f"folder of job {facts.name}", why, facts.name, age, facts.size, facts)
            )  # fmt: skip
    return found


def _earlier_jobs(facts: FolderFacts) -> set[str]:
    """The jobs whose items or results this one was made from."""
    assert facts.record is not None
    spec = facts.record.spec
    job, source = spec.get("job"), spec.get("source")
    return {
        str(id_)
        for id_ in (
            facts.record.previous,
            facts.record.retry_of,
            job.get("skip_succeeded_of") if isinstance(job, Mapping) else None,
            source.get("job") if isinstance(source, Mapping) else None,
        )
        if id_
    }


def _other(folders: Sequence[FolderFacts], at: float) -> list[Finding]:
    """What is left of jobs that never were or are not any more; and what cannot be understood."""
    found = []
    for facts in folders:
        age = None if facts.newest is None else at - facts.newest
        if facts.kind is FolderKind.DAMAGED:
            found.append(Finding(Act.LEAVE, f"folder {facts.name}", f"damaged: {facts.reason}", None, age, facts.size))
        elif facts.kind is FolderKind.REMAINS and age is not None and age > REMAINS_SECONDS:
            why = "not a job: its items were staged only in part, or it was removed only in part"
            found.append(Finding(Act.REMOVE, f"folder {facts.name}", why, None, age, facts.size, facts))
    return found


def _leave(facts: FolderFacts, why: str, age: float | None = None) -> Finding:
    return Finding(Act.LEAVE, f"job {facts.name}", why, facts.name, age, facts.size, facts)


def _runs(count: int) -> str:
    return "1 child run" if count == 1 else f"{count:,} child runs"


def _end_seconds(facts: FolderFacts) -> float:
    """A child run that lives has ended itself so long after its job was over."""
    grace = facts.child_seconds("fence_seconds", 5.0) + facts.child_seconds("item_grace_seconds", 10.0)
    return facts.lease_seconds + grace


def _created(record: JobRecord) -> float:
    try:
        return datetime.fromisoformat(record.created).timestamp()
    except ValueError:
        return 0.0
