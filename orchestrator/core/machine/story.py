"""What happened to a batch and what was decided, in people's words; batches and attempts count from 1."""

from __future__ import annotations

from orchestrator.core.machine import events as ev
from orchestrator.core.machine.events import Command, Event
from orchestrator.core.model import Counts, Reading, RunId, StopRecord


def batch_of(event: Event) -> int | None:
    """The batch that an event is about, from 0; None when it is about none, or about several."""
    return event.progress.batch if isinstance(event, ev.Progressed) else getattr(event, "batch", None)


def concerns(command: Command, batch: int, run: RunId | None) -> bool:
    """Whether a command is about that batch, whose child run is that; what ends the job concerns all."""
    if isinstance(command, ev.Cancel):
        return run is not None and run in command.runs
    return getattr(command, "batch", batch) == batch


def tell_event(event: Event) -> str:
    """One event, told of its batch ("it")."""
    match event:
        case ev.Started():
            return "the parent run began to act"
        case ev.Restored():
            was = f", and Prefect says {event.phase.value.title()}" if event.phase else ""
            was += f"; it had been given up ({event.recalled})" if event.recalled else ""
            return f"an earlier parent run left attempt {event.attempt + 1}: {_reading(event.reading)}{was}"
        case ev.Submitted():
            return f"Prefect has its child run {event.run} ({event.phase.value.title()}, attempt {event.attempt + 1})"
        case ev.SubmissionDeferred():
            return "Prefect could not be reached: nothing was created"
        case ev.SubmissionLost():
            return "the answer to its creation was lost: its child run may exist or not"
        case ev.SubmissionRefused():
            return f"Prefect refused to create its child run: {event.reason}"
        case ev.SubmissionAbsent():
            return "Prefect knows no such child run (yet)"
        case ev.RunSeen():
            return f"its child run was seen {_state(event)}"
        case ev.RunVanished():
            return "its child run was deleted in Prefect"
        case ev.FellSilent():
            return f"its process gave no sign of life for {event.seconds:.0f} s"
        case ev.Recalled():
            return f"an earlier parent run had given it up ({event.reason})"
        case ev.Progressed():
            return f"news of its items: {_counts(event.progress.counts)}"
        case ev.Closed():
            return f"its outcomes were read (attempt {event.attempt + 1}): {_reading(event.reading)}"
        case ev.CloseFailed():
            return f"its outcomes could not be read: {event.reason}"
        case _:
            return _tell_job_event(event)


def _tell_job_event(event: Event) -> str:
    match event:
        case ev.Spared():
            return "child runs that were to be cancelled had begun to run: their items get their grace"
        case ev.StopRequested():
            return f"a stop was asked for: {_stop(event.record)}"
        case ev.ControlChanged():
            return f"an operator changed the job: {_control(event)}"
        case ev.Superseded():
            return "another parent run took the job over"
        case ev.Ticked():
            return "time passed"
        case _:
            return type(event).__name__


def tell_command(command: Command) -> str:
    """One decision."""
    match command:
        case ev.Submit():
            return f"create its child run (attempt {command.attempt + 1})"
        case ev.Resolve():
            return f"ask Prefect whether its child run exists (attempt {command.attempt + 1})"
        case ev.Cancel():
            unless = ", unless it runs by now" if command.spare_running else ""
            return f"cancel {'its child run' if len(command.runs) == 1 else f'{len(command.runs)} child runs'}{unless}"
        case ev.Recall():
            return f"give attempt {command.attempt + 1} up and cancel its child run{_because(command.reason)}"
        case ev.Close():
            seen = command.phase.value.title() if command.phase else "not seen to end"
            return f"read its outcomes (attempt {command.attempt + 1}, {seen})"
        case ev.WriteStop():
            return f"stop the job: {_stop(command.record)}"
        case ev.Settle():
            return f"it is over: {_word(command.outcome)}{_because(command.reason)}"
        case ev.TryAgain():
            return f"attempt {command.attempt + 1} is lost, try again{_because(command.reason)}"
        case ev.Finish():
            return f"the job is over: {_word(command.verdict)}"
        case ev.StandDown():
            return "act no more"


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _word(value: str) -> str:
    return str(value).replace("_", " ")


def _state(event: ev.RunSeen) -> str:
    name = event.phase.value.title()
    known = f"{event.state_name} ({name})" if event.state_name not in ("", name) else name
    return f"{known}: {event.message}" if event.message else known


def _stop(record: StopRecord) -> str:
    return f"{record.mode.value}, {record.reason or _word(record.cause)} ({record.who})"


def _counts(counts: Counts) -> str:
    failed = f"{counts.failed} failed"
    if (first := counts.first_failure) is not None:
        failed += f" (first: item {first.index}, {first.type}{': ' + first.text if first.text else ''})"
    return f"{counts.succeeded} succeeded, {failed}"


def _reading(reading: Reading) -> str:
    parts = [_counts(reading.counts)]
    parts += [f"{n} {word}" for n, word in ((reading.unknown, "unknown"), (reading.not_started, "not started")) if n]
    if reading.damaged:
        parts.append(f"{reading.damaged} records damaged")
    if reading.suspect is not None:
        parts.append(f"item {reading.suspect} in progress alone")
    how = f"its last word: {_word(reading.reason)}" if reading.ended and reading.reason else "no last word"
    return f"{', '.join(parts)}; {how}{_because(reading.why)}"


def _control(event: ev.ControlChanged) -> str:
    said = []
    if event.max_in_flight is not None:
        said.append(f"max_in_flight {event.max_in_flight}")
    if event.paused is not None:
        said.append("paused" if event.paused else "goes on")
    if event.kill_switch is not None:
        said.append(f"kill switch {event.kill_switch}")
    if event.no_kill_switch:
        said.append("no kill switch")
    return ", ".join(said) or "nothing that makes sense"
