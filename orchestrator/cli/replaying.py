"""`orchestrator replay`: what happened in a job, and whether the same would be decided today."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from orchestrator.cli.jobs import open_job
from orchestrator.cli.options import JOB, OUTPUT, Json, Storage, flag
from orchestrator.cli.terminal import give, give_json, plain, say, table
from orchestrator.core.machine import Stage
from orchestrator.core.machine import events as ev
from orchestrator.core.machine.events import Command
from orchestrator.core.machine.replay import Difference, Replay
from orchestrator.core.machine.story import batch_of, concerns, tell_command, tell_event
from orchestrator.core.machine.stripping import Stripping
from orchestrator.core.machine.wire import Recorded
from orchestrator.core.model import RunId
from orchestrator.errors import ConfigurationError, StorageError
from orchestrator.store.journal import Gap, Journal, chunk, file_lines, open_journal, parents

JOB_WIDE = (ev.StopRequested, ev.ControlChanged, ev.Superseded)  # part of the story of every batch that is not over
SAVED_AT_ONCE = 1_000


def replay(
    job: Annotated[str, Parameter(help="The job's id, or a file that `replay --save` wrote (NAME.jsonl).", group=JOB)],
    /,
    *,
    batch: Annotated[
        int | None, flag("--batch", "Tell the story of this batch, counted from 1 as in all texts.", group=OUTPUT)
    ] = None,
    parent: Annotated[
        int | None, flag("--parent", "Only this parent run of the job, counted from 1. Default: all.", group=JOB)
    ] = None,
    save: Annotated[
        str | None,
        flag(
            "--save",
            "Write what one parent run recorded to this file, without error texts, keys, reasons and run names.",
            group=OUTPUT,
        ),
    ] = None,
    storage: Storage = None,
    json: Json = False,
) -> int:
    """Play what a job's parent run recorded once more, and compare: would the same be decided today?

    Every parent run records what happened to it (a child run was created, seen, its outcomes were read; time passed)
    and what it decided, in the job's folder. This command gives the same events to the code that is installed here.
    Nothing is asked of Prefect and nothing is changed.

    Without `--batch` it prints one line per parent run. With `--batch 17` it tells the story of that batch: when what
    happened, and what was decided upon it. Ends with 0 when the decisions are the same, and with 1 at the first one
    that differs, which is shown: a bug was mended since, or made.

    `orchestrator replay JOB --save FILE.jsonl` keeps a job as a test, without texts that may be confidential;
    `orchestrator replay FILE.jsonl` plays it.
    """
    journals = _journals(job, parent, storage)
    if save is not None:
        return _save(journals, save)
    told = [_play(number, journal, batch) for number, journal in journals]
    same = all(one.difference is None for one in told)
    if json:
        give_json(_facts(job, told, batch))
    else:
        _give(job, told, batch)
    return 0 if same else 1


# ------------------------------------------------------------------ where they are


def _journals(job: str, parent: int | None, storage: str | None) -> list[tuple[int, Journal]]:
    """What was recorded of the job (or is in the file), by parent run.

    Raises:
        ConfigurationError: nothing was.
    """
    if job.endswith(".jsonl") and (os.sep in job or os.path.exists(job)):
        try:
            journal = Journal(file_lines(job), job)
        except OSError as e:
            raise ConfigurationError(f"{job} cannot be read: {e.strerror}") from e
        found = [(journal.header.epoch, journal)]
    else:
        folder = open_job(job, storage)
        recorded = parents(folder.store)
        if not recorded:
            raise ConfigurationError(
                f"job {job!r} has no recorded events: its parent run was told not to record "
                "(ORCHESTRATOR_RECORD_EVENTS), or is of an earlier version"
            )
        if parent is not None:
            recorded = {number: names for number, names in recorded.items() if number == parent}
        found = [(number, open_journal(folder.store, names)) for number, names in recorded.items()]
    if parent is not None and not any(number == parent for number, _ in found):
        raise ConfigurationError(f"job {job!r} has no recorded parent run {parent}")
    return found


# ------------------------------------------------------------------ playing


@dataclass
class Line:
    """One line of a story: when, what happened, and what was decided."""

    at: float
    happened: str
    decided: list[str]


@dataclass
class Told:
    """What one parent run recorded, played."""

    number: int
    version: str
    batches: int
    events: int = 0
    seconds: float = 0.0
    end: str = ""
    lost: int = 0
    compared: int = 0
    damaged: int = 0
    unproven: int = 0
    difference: Difference | None = None
    story: list[Line] = field(default_factory=list)


def _play(number: int, journal: Journal, batch: int | None) -> Told:
    setup = journal.header.setup
    if batch is not None and not 1 <= batch <= len(setup.counts):
        raise ConfigurationError(f"the job has {len(setup.counts):,} batches, there is no batch {batch}")
    told = Told(number, journal.header.version, len(setup.counts))
    machine, teller = Replay(setup), Teller(batch - 1) if batch is not None else None
    for found in journal:
        if isinstance(found, Gap):
            told.lost += found.lost
            continue
        told.events, told.seconds = told.events + 1, found.at
        for command in found.commands or ():
            if isinstance(command, (ev.Finish, ev.StandDown)):
                told.end = tell_command(command)
        before = machine.state.batches[teller.batch].stage if teller else None
        if not told.lost and told.difference is None:
            machine.play(found)
            told.compared, told.difference = told.compared + 1, machine.difference
        if teller is not None:
            after = machine.state.batches[teller.batch].stage
            told.story += teller.tell(found, settled=after is Stage.SETTLED and before is not after)
    told.damaged, told.unproven = journal.damaged, journal.unproven
    return told


class Teller:
    """Picks out of all events those that make the story of one batch (from 0)."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._run: RunId | None = None
        self._over = False

    def tell(self, recorded: Recorded, *, settled: bool) -> Iterator[Line]:
        """The line of an event, where it has one.

        Args:
            settled: The batch's outcome is final since.
        """
        event = recorded.event
        own = batch_of(event) == self.batch
        if own and isinstance(event, ev.Submitted):
            self._run = event.run
        if isinstance(event, ev.Spared):
            own = self._run in event.runs
        commands = recorded.commands or ()
        decided = [c for c in commands if concerns(c, self.batch, self._run)]
        if recorded.commands is None:
            said = ["(refused as impossible)"] if own else []
        else:
            said = [self._said(c) for c in decided]
        if settled and not any(isinstance(c, ev.Settle) and c.batch == self.batch for c in decided):
            said.append("it is not submitted any more")
        if own or said or (isinstance(event, JOB_WIDE) and not self._over):
            yield Line(recorded.at, self._happened(recorded, own), said)
        self._over = self._over or settled or any(isinstance(c, ev.Settle) for c in decided)

    def _happened(self, recorded: Recorded, own: bool) -> str:
        other = batch_of(recorded.event)
        told = tell_event(recorded.event)
        return told if own or other is None else f"(batch {other + 1}: {told})"

    def _said(self, command: Command) -> str:
        if isinstance(command, ev.Cancel) and len(command.runs) > 1:
            others = len(command.runs) - 1
            return f"cancel its child run, with {others} other{'s' if others > 1 else ''}"
        return tell_command(command)


# ------------------------------------------------------------------ telling


def _give(job: str, told: list[Told], batch: int | None) -> None:
    give(plain(f"job {job}" + (f", batch {batch} of {told[0].batches:,}" if batch is not None else "")))
    if batch is None:
        rows = [
            (f"{t.number}", f"{t.events:,}", f"{t.seconds:.1f}", t.version or "-", plain(_ended(t)), _result(t))
            for t in told
        ]
        give(table(rows, ("parent run", "events", "seconds", "version", "end", "today")))
    for one in told:
        if batch is not None:
            give("" if len(told) == 1 else f"\nparent run {one.number}")
            for line in one.story:
                give(f"{line.at:>12.3f} s  {plain(line.happened)}")
                for decision in line.decided:
                    give(f"{'':>14}    -> {plain(decision)}")
        for remark in _remarks(one):
            say(f"parent run {one.number}: {remark}")
    for one in told:
        if one.difference is not None:
            give(_difference(one, one.difference))
            return
    give("the same decisions")


def _ended(told: Told) -> str:
    return told.end or "no end is recorded: it was killed, or still runs"


def _result(told: Told) -> str:
    if told.difference is not None:
        return f"differs at event {told.difference.recorded.number:,}"
    return "the same decisions" if not told.lost else f"the same up to event {told.compared:,}"


def _remarks(told: Told) -> Iterator[str]:
    if told.lost:
        yield (
            f"{told.lost:,} events are missing after event {told.compared:,} (the storage was away, or a line was "
            "damaged): what comes after them is told, and cannot be compared"
        )
    elif told.damaged:
        yield "its last line is torn: it was killed while it wrote"
    if told.unproven and told.end:
        yield f"{told.unproven:,} of its events were changed after they were written, or lack their hash"


def _difference(told: Told, difference: Difference) -> str:
    recorded = difference.recorded
    about = batch_of(recorded.event)
    who = f"batch {about + 1}: " if about is not None else ""
    return "\n".join(
        [
            f"parent run {told.number}, event {recorded.number:,} at {recorded.at:.3f} s: "
            f"{who}{plain(tell_event(recorded.event))}",
            f"  decided then: {plain(_decisions(difference.then))}",
            f"  decided now:  {plain(_decisions(difference.now))}",
        ]
    )


def _decisions(commands: Any) -> str:
    if commands is None:
        return "refused as impossible"
    return "; ".join(_decision(c) for c in commands) or "nothing"


def _decision(command: Command) -> str:
    batch = getattr(command, "batch", None)
    return tell_command(command) if batch is None else f"batch {batch + 1}: {tell_command(command)}"


def _facts(job: str, told: list[Told], batch: int | None) -> dict[str, Any]:
    parents_ = [
        {
            "parent": t.number, "version": t.version, "events": t.events, "seconds": t.seconds, "end": t.end or None,
            "missing": t.lost, "same": t.difference is None, "difference": _difference_facts(t.difference),
        }
        for t in told
    ]  # fmt: skip
    facts: dict[str, Any] = {"job": job, "same": all(p["same"] for p in parents_), "parents": parents_}
    if batch is not None:
        story = [
            {"parent": t.number, "at": line.at, "happened": line.happened, "decided": line.decided}
            for t in told
            for line in t.story
        ]
        facts.update(batch=batch, story=story)
    return facts


def _difference_facts(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    recorded = difference.recorded
    about = batch_of(recorded.event)
    return {
        "event": recorded.number, "at": recorded.at, "batch": None if about is None else about + 1,
        "happened": tell_event(recorded.event),
        "then": None if difference.then is None else [_decision(c) for c in difference.then],
        "now": None if difference.now is None else [_decision(c) for c in difference.now],
    }  # fmt: skip


# ------------------------------------------------------------------ saving


def _save(journals: list[tuple[int, Journal]], path: str) -> int:
    """Write what one parent run recorded to a file, stripped."""
    if len(journals) > 1:
        numbers = ", ".join(str(number) for number, _ in journals)
        raise ConfigurationError(f"the job has several parent runs ({numbers}): say which one with --parent")
    if not path.endswith(".jsonl"):
        raise ConfigurationError(f"{path!r} must end in .jsonl, so that `replay` knows a file from a job")
    events = save(journals[0][1], path)
    say(f"wrote {events:,} events to {path}")
    return 0


def save(journal: Journal, path: str | Path) -> int:
    """The journal without what may be confidential, as a new file; the number of events.

    Raises:
        StorageError: some of its events are missing.
        ConfigurationError: the file exists, or cannot be written.
    """
    stripping, header = Stripping(journal.header.setup), journal.header.bare()
    events: list[Recorded] = []
    for found in journal:
        if isinstance(found, Gap):
            raise StorageError("events are missing in what was recorded: it cannot be replayed as a whole", field=None)
        events.append(stripping.strip(found))
    try:
        with Path(path).open("xb") as file:
            for first in range(0, max(len(events), 1), SAVED_AT_ONCE):
                some = events[first : first + SAVED_AT_ONCE]
                file.write(chunk(some, header=header if first == 0 else None))
    except OSError as e:
        raise ConfigurationError(f"{path} cannot be written: {e.strerror}") from e
    return len(events)
