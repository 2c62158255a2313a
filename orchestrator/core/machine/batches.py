"""What each event means for the batch it is about: the rows of `table.TABLE`, as functions.

Every function changes one batch (and what the job derives from it) and answers with commands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator.core.machine import events as ev
from orchestrator.core.machine.events import Command
from orchestrator.core.machine.state import BatchState, State
from orchestrator.core.machine.table import TABLE, Stage
from orchestrator.core.model import (
    BatchOutcome,
    Counts,
    EndReason,
    Phase,
    Reading,
    StopCause,
    StopMode,
    StopRecord,
)
from orchestrator.errors import InvalidTransitionError

ASK_AGAIN_SECONDS = 2.0  # between two questions about a creation of unknown outcome
MOST_ATTEMPTS = 50  # of one batch, whoever is to blame
OVER = (Stage.CLOSING, Stage.SETTLED)  # news of a batch that is over changes nothing
DELETED = "deleted"  # the state name of a run whose record is gone
DEFERRAL_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0)  # before the next creation while Prefect is away


def addressed(state: State, event: ev.BatchEvent) -> BatchState | None:
    """The batch that an event is about; None for news of an attempt that is over.

    Raises:
        InvalidTransitionError: the table has no such row, or there is no such batch or attempt.
    """
    if not 0 <= event.batch < len(state.batches):
        raise InvalidTransitionError(f"there is no batch {event.batch}: {type(event).__name__} cannot happen")
    batch = state.batches[event.batch]
    if event.attempt < batch.attempt:
        return None
    if event.attempt > batch.attempt and not isinstance(event, ev.Restored):
        raise InvalidTransitionError(f"batch {batch.index} is on attempt {batch.attempt}, not {event.attempt}")
    if (batch.stage, type(event)) not in TABLE:
        raise InvalidTransitionError(f"batch {batch.index}: {type(event).__name__} cannot happen while {batch.stage}")
    return batch


def on_batch_event(state: State, event: ev.BatchEvent) -> list[Command]:
    """Play one event about a batch.

    Raises:
        InvalidTransitionError: see `addressed`; or the row does not lead where the event leads.
    """
    if (batch := addressed(state, event)) is None:
        return []
    row, before = TABLE[(batch.stage, type(event))], batch.stage
    commands = _HANDLERS[type(event)](state, batch, event)
    if batch.stage not in row.to:  # pragma: no cover - a bug in a handler, not a condition of the world
        raise InvalidTransitionError(f"batch {batch.index}: {before} may not become {batch.stage} on {event}")
    return commands


# ------------------------------------------------------------------ creation


def _submitted(state: State, batch: BatchState, event: ev.Submitted) -> list[Command]:
    state.deferrals = 0
    if batch.stage in OVER:
        if batch.run is not None:
            return []
        batch.run = event.run  # nobody waits for it any more: it must not run unwatched
        return [] if event.phase.is_terminal else [ev.Cancel((event.run,))]
    if batch.stage in (Stage.WAITING, Stage.SUBMITTING, Stage.UNKNOWN):
        batch.run = event.run
        if not state.begun and not event.started and event.phase in (Phase.CANCELLING, Phase.CANCELLED):
            # Given up by the parent before this one, or cleared away after its death: nothing of it ran.
            batch.giving_up = "it was cancelled before it started, in the time of an earlier parent run"
        state.move(batch, Stage.IN_FLIGHT)
    return _seen(state, batch, event.phase, event.started, "")


def _recalled(state: State, batch: BatchState, event: ev.Recalled) -> list[Command]:
    if batch.stage is Stage.SETTLED or batch.run is None:
        return []
    batch.giving_up = event.reason
    if batch.stage is not Stage.IN_FLIGHT:
        return []
    batch.silent_at = state.tally.now if event.silent else None
    state.move(batch, Stage.STOPPING)
    return [ev.Recall(batch.index, batch.attempt, batch.run, event.reason, event.silent)]  # it may not have been asked


def _deferred(state: State, batch: BatchState, event: ev.SubmissionDeferred) -> list[Command]:
    if batch.stage in OVER:
        return []
    delay = DEFERRAL_SECONDS[min(state.deferrals, len(DEFERRAL_SECONDS) - 1)]
    state.deferrals += 1
    state.submit_not_before = state.tally.now + delay
    if batch.stage is Stage.UNKNOWN:
        batch.ask_at = state.tally.now + delay
        return []
    state.move(batch, Stage.WAITING)
    if state.stop is not None:
        return give_back(state, batch)
    state.retry.appendleft(batch.index)
    return []


def _lost(state: State, batch: BatchState, event: ev.SubmissionLost) -> list[Command]:
    if batch.stage in OVER:
        return []
    if batch.stage is Stage.SUBMITTING:
        state.move(batch, Stage.UNKNOWN)
    batch.ask_at = state.tally.now + ASK_AGAIN_SECONDS
    return []


def _absent(state: State, batch: BatchState, event: ev.SubmissionAbsent) -> list[Command]:
    if batch.stage is Stage.UNKNOWN:
        batch.ask_at = state.tally.now + ASK_AGAIN_SECONDS
    return []


def _refused(state: State, batch: BatchState, event: ev.SubmissionRefused) -> list[Command]:
    if batch.stage in OVER:
        return []
    state.move(batch, Stage.WAITING)
    commands = give_back(state, batch)
    reason = f"the child run of batch {batch.index + 1} cannot be created: {event.reason}"
    return [*commands, *stop(state, StopRecord(StopMode.CANCEL, StopCause.FAILED, reason, "parent run"))]


# ------------------------------------------------------------------ life


def _run_seen(state: State, batch: BatchState, event: ev.RunSeen) -> list[Command]:
    if batch.stage in OVER:
        return []
    batch.died = event.message or batch.died
    return _seen(state, batch, event.phase, event.started, event.state_name)


def _seen(state: State, batch: BatchState, phase: Phase, started: bool, state_name: str) -> list[Command]:
    if batch.phase is not phase:
        batch.phase_since = state.tally.now
        if phase is Phase.RUNNING:
            state.tally.last_progress = state.tally.now
    batch.phase, batch.state_name = phase, state_name or batch.state_name
    batch.started = batch.started or started or phase is Phase.RUNNING
    if phase.is_terminal:
        return close(state, batch, phase)
    return []


def _vanished(state: State, batch: BatchState, event: ev.RunVanished) -> list[Command]:
    if batch.stage in OVER:
        return []
    batch.phase, batch.state_name = None, DELETED
    return close(state, batch, None)


def _fell_silent(state: State, batch: BatchState, event: ev.FellSilent) -> list[Command]:
    if batch.stage is not Stage.IN_FLIGHT or batch.phase is not Phase.RUNNING or batch.run is None:
        return []
    batch.giving_up = f"its process gave no sign of life for {event.seconds:.0f} s"
    batch.silent_at = state.tally.now
    state.move(batch, Stage.STOPPING)
    return [ev.Recall(batch.index, batch.attempt, batch.run, batch.giving_up, silent=True)]


def on_progress(state: State, event: ev.Progressed) -> list[Command]:
    """Newer counts of a running child replace the older ones; anything else changes nothing."""
    news = event.progress
    if not 0 <= news.batch < len(state.batches):
        return []
    batch = state.batches[news.batch]
    fits = news.counts.settled <= state.setup.counts[batch.index]
    in_time = batch.stage in (Stage.IN_FLIGHT, Stage.STOPPING) and news.attempt == batch.attempt
    if fits and in_time and news.sequence > batch.sequence:
        state.tally.update(batch.counts, news.counts)
        batch.sequence, batch.counts = news.sequence, news.counts
    return []


# ------------------------------------------------------------------ end


def close(state: State, batch: BatchState, phase: Phase | None) -> list[Command]:
    """The child is over (or given up): read the ledger."""
    state.move(batch, Stage.CLOSING)
    return [ev.Close(batch.index, batch.attempt, phase, batch.giving_up or batch.died)]


def _closed(state: State, batch: BatchState, event: ev.Closed) -> list[Command]:
    if batch.stage is Stage.SETTLED:
        return _amend(state, batch, event.reading) if batch.unread else []
    return _decide(state, batch, event.reading)


def _amend(state: State, batch: BatchState, reading: Reading) -> list[Command]:
    """The ledger of a batch that was settled without it could be read after all: its items count as it says."""
    before = batch.reading
    assert before is not None  # it is settled
    assert batch.outcome is not None
    reading = _fitted(reading, state.setup.counts[batch.index])
    outcome = _outcome_of_all(reading) if not reading.unknown + reading.not_started else batch.outcome
    state.tally.update(batch.counts, reading.counts)
    state.tally.amend(
        batch.outcome, outcome, reading.unknown - before.unknown, reading.not_started - before.not_started
    )
    batch.counts, batch.reading, batch.outcome, batch.unread = reading.counts, reading, outcome, False
    return []


def _outcome_of_all(reading: Reading) -> BatchOutcome:
    """Of a batch whose items all have an outcome."""
    none_succeeded = reading.counts.settled > 0 and reading.counts.succeeded == 0
    return BatchOutcome.FAILED if none_succeeded else BatchOutcome.COMPLETED


def _restored(state: State, batch: BatchState, event: ev.Restored) -> list[Command]:
    batch.attempt, batch.phase, batch.giving_up = event.attempt, event.phase, event.recalled
    if event.left is not None:
        batch.run, batch.unconfirmed = event.left, True
    return _decide(state, batch, event.reading)


def _close_failed(state: State, batch: BatchState, event: ev.CloseFailed) -> list[Command]:
    if batch.stage is Stage.SETTLED:
        return []
    batch.unread = True
    commands = settle(state, batch, BatchOutcome.UNCONFIRMED, f"its outcomes cannot be read: {event.reason}")
    reason = f"the job folder cannot be read: {event.reason}"
    return [*commands, *stop(state, StopRecord(StopMode.CANCEL, StopCause.FAILED, reason, "parent run"))]


def _decide(state: State, batch: BatchState, reading: Reading) -> list[Command]:
    """What the ledger of an attempt that is over makes of its batch."""
    count = state.setup.counts[batch.index]
    reading = _fitted(reading, count)
    state.tally.update(batch.counts, reading.counts)
    batch.counts, batch.reading = reading.counts, reading
    if reading.counts.settled >= count:
        return settle(state, batch, _outcome_of_all(reading), "")
    if batch.unconfirmed:
        last = f"not seen to end, last seen {_where(batch)}"
        if batch.run is not None:
            state.note(f"the child run of batch {batch.index + 1} was {last}: run {batch.run}")
        return settle(state, batch, BatchOutcome.UNCONFIRMED, last)
    if reading.reason is EndReason.REFUSED:
        state.tally.crashed_attempts += 1
        state.note(f"the child run of batch {batch.index + 1} could not begin: {reading.why}")
        return settle(state, batch, BatchOutcome.CRASHED, f"its run could not begin: {reading.why}")
    if batch.giving_up is not None:
        return _try_again(state, batch, batch.giving_up)
    if reading.reason is EndReason.STOPPED:
        return settle(state, batch, BatchOutcome.CANCELLED, "stopped")
    if batch.phase is Phase.CANCELLED and reading.reason in (None, EndReason.TERMINATED, EndReason.COMPLETED):
        if state.stop is None:
            state.note(
                f"the child run of batch {batch.index + 1} was cancelled by someone else; it was not tried again"
            )
        return settle(state, batch, BatchOutcome.CANCELLED, "cancelled")
    return _try_again(state, batch, _how_lost(batch, reading))


def _how_lost(batch: BatchState, reading: Reading) -> str:
    if reading.reason is not None and reading.reason is not EndReason.COMPLETED:
        return f"its run ended early ({reading.reason.value.replace('_', ' ')})"
    if batch.phase is None:  # restored: how that run ended was the earlier parent's to say
        return "its run was deleted" if batch.state_name == DELETED else "an earlier parent run gave it up"
    how = f" ({batch.died})" if batch.died else ""
    return f"its run ended as {batch.phase.value.title()} before all its items had an outcome{how}"


def _try_again(state: State, batch: BatchState, reason: str) -> list[Command]:
    """An attempt was lost: the next one, where there is one and the job goes on."""
    state.tally.crashed_attempts += 1
    if state.stop is not None:
        outcome = BatchOutcome.CANCELLED if state.cancelling else BatchOutcome.CRASHED
        return settle(state, batch, outcome, reason)
    if batch.attempt >= (MOST_ATTEMPTS if _is_worth_another(state, batch) else state.setup.batch_retries):
        outcome = BatchOutcome.FAILED if batch.phase is Phase.FAILED else BatchOutcome.CRASHED
        state.note_given_up(f"batch {batch.index + 1} was given up after {_attempts(batch.attempt + 1)}: {reason}")
        return settle(state, batch, outcome, reason)
    lost = batch.attempt
    batch.attempt += 1
    batch.run, batch.phase, batch.state_name, batch.started = None, None, "", False
    batch.died = ""
    batch.sequence, batch.giving_up, batch.silent_at = -1, None, None
    state.move(batch, Stage.WAITING)
    state.retry.append(batch.index)
    return [ev.TryAgain(batch.index, lost, reason)]


def _attempts(count: int) -> str:
    return "its only attempt" if count == 1 else f"{count} attempts, the last of which was lost"


def _is_worth_another(state: State, batch: BatchState) -> bool:
    """Whether an attempt was lost that is not one of the batch's retries."""
    reading = batch.reading
    if reading is None:
        return False
    if reading.reason is EndReason.LEASE_LOST:
        return True  # a parent that was silent for too long is no fault of the batch
    # From the third attempt on, runs take their items one by one: each that dies names the item that killed it, or
    # has at least come further than the one before.
    isolating = state.setup.isolate and batch.attempt >= 2 <= state.setup.batch_retries
    return isolating and (reading.suspect is not None or reading.advanced)


def settle(state: State, batch: BatchState, outcome: BatchOutcome, reason: str) -> list[Command]:
    """Final: the batch has its outcome and each of its items is in exactly one count."""
    count = state.setup.counts[batch.index]
    counts = batch.counts or Counts()
    if batch.reading is not None:
        unknown, not_started = batch.reading.unknown, batch.reading.not_started
        if damaged := batch.reading.damaged:
            what = "a damaged record" if damaged == 1 else f"{damaged:,} damaged records"
            state.note(f"{what} in batch {batch.index + 1} could not be read: what became of the items is unknown")
    elif batch.started:
        unknown, not_started = count - counts.settled, 0
    else:
        unknown, not_started = 0, count - counts.settled
    batch.reading = Reading(counts, unknown, not_started, ended=batch.reading is not None and batch.reading.ended)
    batch.outcome = outcome
    state.move(batch, Stage.SETTLED)
    state.tally.settle(outcome, unknown=unknown, not_started=not_started)
    return [ev.Settle(batch.index, batch.attempt, outcome, reason)]


def give_back(state: State, batch: BatchState) -> list[Command]:
    """A waiting batch will not be asked for: not submitted at all, or not tried again."""
    if batch.attempt == 0:
        return settle(state, batch, BatchOutcome.NOT_SUBMITTED, "")
    return settle(state, batch, BatchOutcome.CANCELLED, "the job stopped before it was tried again")


def stop(state: State, record: StopRecord, *, written: bool = False) -> list[Command]:
    """Stop the job, or make a stop stronger. A stop never becomes weaker, and the first cause stands."""
    before = state.stop
    if before is not None and (before.mode is StopMode.CANCEL or record.mode is StopMode.DRAIN):
        return []
    state.stop, state.stop_at = record, state.tally.now
    commands: list[Command] = [] if written else [ev.WriteStop(record)]
    if before is not None:  # escalation: why the job stopped does not change
        state.stop = StopRecord(record.mode, before.cause, before.reason, before.who)
        return commands
    for batch in state.batches:
        if batch.stage is Stage.WAITING:
            give_back(state, batch)  # unannounced: there may be very many
    state.retry.clear()
    return commands


def _fitted(reading: Reading, count: int) -> Reading:
    """The reading, made to add up to the batch's items whatever a damaged folder says."""
    counts = reading.counts
    if counts.settled > count:
        succeeded = min(counts.succeeded, count)
        counts = Counts(succeeded, count - succeeded, 0, counts.errors, counts.first_failure)
    rest = count - counts.settled
    if reading.unknown + reading.not_started == rest and counts is reading.counts:
        return reading
    not_started = min(max(reading.not_started, 0), rest)
    return replace(reading, counts=counts, unknown=rest - not_started, not_started=not_started)


def _where(batch: BatchState) -> str:
    return batch.state_name or (batch.phase.value.title() if batch.phase else "nowhere")


# Each handler takes the one event type it is filed under, which a dict cannot say.
_HANDLERS: dict[type, Callable[[State, BatchState, Any], list[Command]]] = {
    ev.Restored: _restored,
    ev.Submitted: _submitted,
    ev.Recalled: _recalled,
    ev.SubmissionDeferred: _deferred,
    ev.SubmissionLost: _lost,
    ev.SubmissionRefused: _refused,
    ev.SubmissionAbsent: _absent,
    ev.RunSeen: _run_seen,
    ev.RunVanished: _vanished,
    ev.FellSilent: _fell_silent,
    ev.Closed: _closed,
    ev.CloseFailed: _close_failed,
}
