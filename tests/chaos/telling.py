"""A campaign's judgement for people: the table of faults survived, or the story of what was not."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.campaign import Judgement
from tests.chaos.checker import Again
from tests.chaos.evidence import Evidence
from tests.chaos.faults import FAULTS, Strike

_ITEM = re.compile(r"\bitem (\d+)")
TAIL = 40


@dataclass
class Row:
    kind: str
    what: str
    times: int = 0
    jobs: int = 0
    again: int = 0
    overlapped: int = 0
    silence: float = 0.0
    skipped: str | None = None


def rows(judgement: Judgement) -> list[Row]:
    """One per kind of fault in the plan."""
    found = {k: Row(k, FAULTS[k].what, skipped=judgement.skipped.get(k)) for k in dict.fromkeys(judgement.plan.kinds)}
    hit: dict[str, set[str]] = defaultdict(set)
    for strike in judgement.strikes:
        row = found[strike.kind]
        row.times += 1
        hit[strike.kind].update(strike.jobs)
        row.jobs = len(hit[strike.kind])
        for evidence in judgement.evidence:
            if evidence.job in strike.jobs:
                row.silence = max(row.silence, silence(evidence, strike))
    for findings in judgement.findings.values():
        for again in findings.again:
            if (cause := blamed(again, judgement.strikes)) is not None:
                found[cause.kind].again += 1
                found[cause.kind].overlapped += again.overlapped > 0
    return list(found.values())


def silence(evidence: Evidence, strike: Strike) -> float:
    """Longest time around a fault in which no item of the job began or ended."""
    moments = sorted(t for x in evidence.executions for t in (x.start, x.end) if t is not None)
    gaps = [(a, b) for a, b in itertools.pairwise(moments) if b > strike.began and a < strike.ended]
    return max((b - a for a, b in gaps), default=0.0)


def blamed(again: Again, strikes: Sequence[Strike]) -> Strike | None:
    """The fault that an execution was probably lost to: the last one that began before it was lost."""
    lost = min(again.first.until, again.second.start)
    before = [strike for strike in strikes if strike.began <= lost]
    return before[-1] if before else None


def table(judgement: Judgement) -> str:
    """Markdown."""
    lines = [
        "| fault | what happened | times | jobs hit | items run again | of them overlapping | longest silence |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows(judgement):
        times = f"not possible: {row.skipped}" if row.skipped else str(row.times)
        lines.append(
            f"| {row.kind} | {row.what} | {times} | {row.jobs} | {row.again} | {row.overlapped} | {row.silence:.0f} s |"
        )
    return "\n".join(lines)


def summary(judgement: Judgement) -> str:
    """What was done, in a few lines."""
    items: Counter[str] = Counter(o for e in judgement.evidence for _, o, *_ in e.outcomes)
    attempts = sum(len(a) for e in judgement.evidence for a in e.attempts.values())
    batches = sum(len(e.attempts) for e in judgement.evidence)
    again = [a for f in judgement.findings.values() for a in f.again]
    most = max((f.most_at_once for f in judgement.findings.values()), default=0)
    lines = [
        f"{len(judgement.strikes)} faults on {len(judgement.evidence)} jobs in {judgement.seconds / 60:.1f} minutes "
        f"(seed {judgement.plan.seed}).",
        f"{sum(items.values())} items: {', '.join(f'{n} {o}' for o, n in sorted(items.items()))}. "
        f"{batches} batches in {attempts} attempts; parents resumed {judgement.resumed} times.",
        f"{len(again)} items ran again after they were lost, {sum(a.overlapped > 0 for a in again)} of them while the "
        f"lost execution was still at work, {max((a.overlapped for a in again), default=0):.1f} s at most.",
        f"Most child runs at once, per job: {most} of {judgement.plan.size.max_in_flight} allowed.",
    ]
    lines += [f"Note: {note}" for f in judgement.findings.values() for note in f.notes]
    return "\n".join(lines)


def story(judgement: Judgement) -> str:
    """What a person needs who must find out why."""
    parts = ["VIOLATIONS", *(f"* {v}" for v in judgement.violations), "", "WHAT THE NEMESIS DID"]
    log = judgement.home / "nemesis.log"
    parts += [log.read_text() if log.exists() else "(no log)"]
    for job, findings in judgement.findings.items():
        concerned = any(job in complaint for complaint in judgement.complaints)
        if findings.violations or concerned:
            parts += [f"JOB {job}", *_of_job(judgement, job, findings.violations)]
    parts += [f"Everything is kept in {judgement.home}"]
    return "\n".join(parts)


def _of_job(judgement: Judgement, job: str, violations: Sequence[str]) -> list[str]:
    parts = []
    log = judgement.home / "world" / "traces" / f"{job}.log"
    if log.exists():
        parts += ["The last lines of its parent:", *log.read_text(errors="replace").splitlines()[-TAIL:], ""]
    evidence = next(e for e in judgement.evidence if e.job == job)
    batch_of = {x.index: x.batch for x in evidence.executions}
    for batch, attempts in evidence.attempts.items():
        batch_of |= {line[0]: batch for a in attempts.values() for line in a.lines if line is not None}
    named = {batch_of[int(n)] for v in violations for n in _ITEM.findall(v) if int(n) in batch_of}
    folder = judgement.home / "stories" / job
    for batch in sorted(named)[:3]:
        parts += [f"Batch {batch + 1} in its folder:", *_listing(folder / "b" / str(batch))]
        parts += [
            f"  item {x.index} attempt {x.attempt} process {x.pid} from {x.start:.1f} to {x.end or x.gone}"
            for x in evidence.executions
            if x.batch == batch
        ]
    return parts


def _listing(folder: Path) -> list[str]:
    found = sorted(folder.rglob("*")) if folder.exists() else []
    return [f"  {os.stat(p).st_mtime:.1f} {os.stat(p).st_size:>7} {p.name}" for p in found if p.is_file()]
