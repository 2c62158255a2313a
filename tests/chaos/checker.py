"""Judges a job that is over by what its folder, the server and its items say; a question without side effects."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.chaos.evidence import AttemptRecord, Evidence, Execution, counted, unsettled


@dataclass(frozen=True)
class Again:
    """An item that was executed a second time because the first execution was lost.

    Args:
        overlapped: Seconds during which both were at work; 0 when one came after the other.
    """

    first: Execution
    second: Execution
    overlapped: float


@dataclass
class Findings:
    """What a check found; no violations means that the job kept its promises."""

    violations: list[str] = field(default_factory=list)
    again: list[Again] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    most_at_once: int = 0


def check(evidence: Evidence) -> Findings:
    """All that must hold of a job that is over, whatever befell it."""
    found = Findings()
    for rule in (_nothing_lost, _numbers, _nothing_counted_twice, _witnessed, _as_designed, _overlaps, _bound, _over):
        found.violations += rule(evidence, found)
    return found


def _nothing_lost(e: Evidence, _: Findings) -> Iterator[str]:
    """Every item is in exactly one outcome."""
    seen = Counter(index for index, *_ in e.outcomes)
    for index in e.expected.keys() - seen.keys():
        yield f"item {index} is lost: it has no outcome"
    for index, times in seen.items():
        if index not in e.expected:
            yield f"item {index} has an outcome and was never given"
        if times > 1:
            yield f"item {index} has {times} outcomes"


def _numbers(e: Evidence, _: Findings) -> Iterator[str]:
    """The report is there, its numbers add up, and they are those of the items."""
    if e.report is None:
        yield "there is no report"
        return
    items, batches = e.report["items"], e.report["batches"]
    four = {name: items[name] for name in ("succeeded", "failed", "unknown", "not_started")}
    if sum(four.values()) != items["total"] or items["total"] != len(e.expected):
        yield f"the report's numbers do not add up to {len(e.expected)}: {items}"
    if sum(n for name, n in batches.items() if name != "total") != batches["total"]:
        yield f"the report's batches do not add up: {batches}"
    words = Counter(outcome for _, outcome, *_ in e.outcomes)
    if words != +Counter(four):
        yield f"the report says {four}, the items say {dict(words)}"


def _nothing_counted_twice(e: Evidence, _: Findings) -> Iterator[str]:
    """By an independent reading of the ledger: one line per item counts, and it is the one that is reported."""
    said = {index: (outcome, attempt) for index, outcome, attempt, _ in e.outcomes}
    for batch, attempts in e.attempts.items():
        lines: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for attempt, index, outcome in counted(attempts):
            lines[index].append((attempt, outcome))
        for index, found in lines.items():
            if len(found) > 1:
                yield f"item {index} (batch {batch + 1}) is counted {len(found)} times: {found}"
            attempt, outcome = found[0]
            if said.get(index) != (outcome, attempt):
                yield f"item {index}: the ledger says {outcome} in attempt {attempt}, reported is {said.get(index)}"


def _witnessed(e: Evidence, found: Findings) -> Iterator[str]:
    """Who is said to have ended did end so, in that very attempt; who is said not to have started did not."""
    done = {(x.index, x.attempt, x.outcome) for x in e.executions if x.end is not None}
    began = Counter(x.index for x in e.executions)
    for index, outcome, attempt, error in e.outcomes:
        if outcome == "not_started" and began[index]:
            yield f"item {index} is said not to have started, and it began {began[index]} times"
        if outcome not in ("succeeded", "failed") or (index, attempt, outcome) in done:
            continue
        if error == "RunDiedError" and began[index] >= 2:
            found.notes.append(f"item {index} was failed because its runs died {began[index]} times while it ran alone")
            continue
        yield f"item {index} is said to have {outcome} in attempt {attempt}, which nobody saw"


def _as_designed(e: Evidence, found: Findings) -> Iterator[str]:
    """Faults change no outcome: what infrastructure lost is run again, as often as was allowed."""
    batch_of = {x.index: x.batch for x in e.executions}
    for index, outcome, _, error in e.outcomes:
        wanted = e.expected.get(index)
        if outcome == wanted or wanted is None or error == "RunDiedError":
            continue
        tried = len(e.attempts.get(batch_of.get(index, -1), {}))
        if outcome in ("unknown", "not_started") and tried >= e.attempts_allowed:
            found.notes.append(f"item {index} is {outcome}: all {tried} attempts of its batch were lost")
            continue
        yield f"item {index} is {outcome} where it should have {wanted} ({tried} attempts of its batch)"


def _overlaps(e: Evidence, found: Findings) -> Iterator[str]:
    """An item is executed again only when its execution was lost, and only one that was in progress may overlap."""
    by_item: dict[int, list[Execution]] = defaultdict(list)
    for execution in sorted(e.executions, key=lambda x: x.start):
        record = _record(e, execution)
        if record.revoked_at is not None and execution.start > record.revoked_at + e.quiet_seconds:
            yield (
                f"item {execution.index} was started by attempt {execution.attempt} "
                f"{execution.start - record.revoked_at:.1f} s after that attempt was given up"
            )
        by_item[execution.index].append(execution)
        yield from _let_go(e, execution)
    for index, executions in by_item.items():
        for first, second in itertools.pairwise(executions):
            if first.attempt >= second.attempt:
                yield f"item {index} was executed by attempt {first.attempt} and then by attempt {second.attempt}"
            if any(a == first.attempt and i == index for a, i, _ in counted(e.attempts.get(first.batch, {}))):
                yield f"item {index} was run again by attempt {second.attempt} after its outcome was counted"
            found.again.append(Again(first, second, max(0.0, min(first.until, second.until) - second.start)))


def _let_go(e: Evidence, execution: Execution) -> Iterator[str]:
    """An attempt starts no item before the one before it was given up and had its time to let go, or said its end."""
    for number in range(execution.attempt):
        earlier = e.attempts.get(execution.batch, {}).get(number)
        if earlier is None or (earlier.ended_at is not None and earlier.ended_at <= execution.start):
            continue
        if not earlier.lines and earlier.accepts is None:
            continue  # it never came as far as an item
        if earlier.revoked_at is None:
            yield f"item {execution.index}: attempt {execution.attempt} began while attempt {number} was not given up"
        elif execution.start < earlier.revoked_at + e.lets_go_seconds - 0.5:
            yield (
                f"item {execution.index}: attempt {execution.attempt} began {execution.start - earlier.revoked_at:.1f} "
                f"s after attempt {number} was given up, and had to wait {e.lets_go_seconds:g} s"
            )


def _record(e: Evidence, execution: Execution) -> AttemptRecord:
    return e.attempts.get(execution.batch, {}).get(execution.attempt, AttemptRecord())


def _bound(e: Evidence, found: Findings) -> Iterator[str]:
    """Never more unsettled child runs than allowed, by the server's own history.

    A run that was given up at its cancel deadline holds its place until then, not for the rest of its life.
    """
    changes: list[tuple[float, int]] = []
    for run in e.runs:
        batch, attempt = run.place
        given_up = e.attempts.get(batch, {}).get(attempt, AttemptRecord()).revoked_at
        ends = [t for t in (run.ended, given_up) if t is not None]
        changes.append((run.created, 1))
        changes += [(min(ends), -1)] if ends else []
    now = 0
    for _, change in sorted(changes):
        now += change
        found.most_at_once = max(found.most_at_once, now)
    if found.most_at_once > e.max_in_flight:
        yield f"{found.most_at_once} child runs were unsettled at once, and {e.max_in_flight} were allowed"
    for key, times in Counter(run.key for run in e.runs).items():
        if times > 1:
            yield f"{times} child runs have the key {key}"


def _over(e: Evidence, _: Findings) -> Iterator[str]:
    """Nothing runs any more, on the server or on the machine, but what the report names as unconfirmed."""
    left = unsettled(e.runs)
    named = e.report["batches"]["unconfirmed"] if e.report else 0
    if len(left) > named:
        yield f"{len(left)} child runs are not over, {named} are named unconfirmed: " + ", ".join(
            f"{run.name} {run.state} ({run.id})" for run in left
        )
    for pid, run in e.alive:
        yield f"process {pid} of child run {run} is still there"
