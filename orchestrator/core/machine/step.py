"""The step: one event in, commands out. Here is what concerns the job as a whole."""

from __future__ import annotations

from orchestrator.core.machine import events as ev
from orchestrator.core.machine.batches import addressed, on_batch_event, on_progress, stop
from orchestrator.core.machine.events import Command, Event
from orchestrator.core.machine.state import BatchState, State
from orchestrator.core.machine.table import Stage
from orchestrator.core.model import Phase, RunId, StopCause, StopRecord, Verdict

_VERDICTS = {
    StopCause.TRIPPED: Verdict.TRIPPED,
    StopCause.ENOUGH: Verdict.ENOUGH,
    StopCause.REQUESTED: Verdict.CANCELLED,
    StopCause.PARENT_CANCELLED: Verdict.CANCELLED,
    StopCause.FAILED: Verdict.FAILED,
    StopCause.CLEANED_UP: Verdict.CANCELLED,
}

_TELLING = (ev.Started, ev.Ticked, ev.Progressed, ev.Closed, ev.CloseFailed, ev.ControlChanged)
"""Events after which a switch may say something new: they move a count, the time, or the switch itself."""

PARENT_CANCELLED_SECONDS = 23.0
"""Prefect kills a cancelled parent about 29 s after the request: by then its report must be written."""


def step(state: State, event: Event, at: float) -> list[Command]:
    """What to do now that `event` has happened.

    Args:
        state: The job; changed in place.
        event: What happened.
        at: When, in seconds on the job's own clock; a time before an earlier one counts as that.

    Returns:
        Commands in the order in which they are to be carried out.

    Raises:
        InvalidTransitionError: the event cannot happen in this state; the state is unchanged.
    """
    if state.is_over:
        if isinstance(event, (ev.Submitted, ev.Closed)) and not state.stood_down:
            return on_batch_event(state, event)
        return []
    if isinstance(event, ev.BatchEvent):
        addressed(state, event)  # an illegal step changes nothing, the clock included
    state.tally.now = max(state.tally.now, at)
    match event:
        case ev.Started():
            state.begun = True
            state.tally.started = state.tally.last_progress = state.tally.now
            commands: list[Command] = []
        case ev.Ticked():
            commands = _on_time(state, event)
        case ev.Progressed():
            commands = on_progress(state, event)
        case ev.Spared():
            _spare(state, event)
            commands = []
        case ev.StopRequested():
            commands = stop(state, event.record, written=event.written)
        case ev.ControlChanged():
            commands = _on_control(state, event)
        case ev.Superseded():
            state.stood_down = True
            return [ev.StandDown()]
        case _:
            commands = on_batch_event(state, event)
    if not state.begun:
        return commands  # nothing is decided before all is restored
    if stopping := _ask_switches(state, event) if isinstance(event, _TELLING) else []:
        # The batch that was to be tried again was settled by the stop.
        commands = [*(c for c in commands if not isinstance(c, ev.TryAgain)), *stopping]
    commands += _cancel_children(state)
    commands += _fill(state)
    if state.tally.settled_batches == len(state.batches):
        state.verdict = _VERDICTS[state.stop.cause] if state.stop else Verdict.COMPLETED
        commands.append(ev.Finish(state.verdict))
    return commands


# ------------------------------------------------------------------ switches


def _ask_switches(state: State, event: Event) -> list[Command]:
    if state.stop is not None:
        return []
    if (switch := state.kill_switch) is not None and switch.evaluate(state.tally):
        clause = switch.clause(state.tally) or str(switch)
        state.tripped_clause, state.tripped_numbers = clause, switch.numbers(state.tally)
        state.tripped_batch = _batch_of(event)
        record = StopRecord(state.setup.on_trip, StopCause.TRIPPED, f"kill switch: {clause}", "kill switch")
        return stop(state, record)
    if (enough := state.setup.enough_when) is not None and enough.evaluate(state.tally):
        clause = enough.clause(state.tally) or str(enough)
        return stop(state, StopRecord(state.setup.on_trip, StopCause.ENOUGH, f"enough: {clause}", "enough_when"))
    return []


def _batch_of(event: Event) -> int | None:
    return event.progress.batch if isinstance(event, ev.Progressed) else getattr(event, "batch", None)


# ------------------------------------------------------------------ time


def _on_time(state: State, event: ev.Ticked) -> list[Command]:
    commands: list[Command] = []
    now = state.tally.now
    known_until = now if event.read_at is None else min(now, event.read_at)
    if state.paused and not state.active:
        state.tally.last_progress = now  # an operator's pause is no stall
    late = state.stop is not None and now >= state.stop_at + _deadline(state)
    for index in sorted(state.active):
        batch = state.batches[index]
        if batch.stage is Stage.CLOSING:
            continue
        # A drain waits for its children as long as they take, but not for a creation that nobody can account for.
        if late and (state.cancelling or batch.run is None):
            batch.unconfirmed = True
            state.move_by_time(batch, Stage.CLOSING)
            commands.append(ev.Close(index, batch.attempt, None))
        elif _is_gone(state, batch):
            # Nobody is left to end it. Given up before the next attempt exists: should it wake up, it ends itself.
            state.note(f"the child run of batch {index + 1} was not seen to end ({batch.giving_up}): run {batch.run}")
            state.move_by_time(batch, Stage.CLOSING)
            commands.append(ev.Close(index, batch.attempt, None, batch.giving_up or ""))
        elif batch.stage is Stage.UNKNOWN and batch.ask_at is not None and now >= batch.ask_at:
            batch.ask_at = None
            # Creating again under the same key is the surest question; after a stop only asking is allowed.
            commands.append((ev.Resolve if state.stop else ev.Submit)(index, batch.attempt))
        elif batch.stage is Stage.IN_FLIGHT and (reason := _too_long(state, batch, known_until)) is not None:
            batch.giving_up = reason
            # What never started may have nobody left to end it, such as a worker that died after it took the run.
            unattended = batch.phase is Phase.PENDING
            batch.silent_at = now if unattended else None
            state.move_by_time(batch, Stage.STOPPING)
            commands += [ev.Recall(index, batch.attempt, batch.run, reason, unattended)] if batch.run else []
    return commands


def _is_gone(state: State, batch: BatchState) -> bool:
    """Whether a child that nobody may be left to end was not seen to end; in a cancelling stop its deadline decides."""
    if batch.stage is not Stage.STOPPING or batch.silent_at is None or state.cancelling:
        return False
    return state.tally.now >= batch.silent_at + state.setup.cancel_deadline


def _deadline(state: State) -> float:
    if state.stop is not None and state.stop.cause is StopCause.PARENT_CANCELLED:
        return min(state.setup.cancel_deadline, PARENT_CANCELLED_SECONDS)
    return state.setup.cancel_deadline


def _too_long(state: State, batch: BatchState, known_until: float) -> str | None:
    since = known_until - batch.phase_since
    limit = state.setup.batch_timeout
    if batch.phase is Phase.PENDING and since > state.setup.start_timeout:
        return f"it did not start within {state.setup.start_timeout:g} s of Pending"
    if batch.phase is Phase.RUNNING and limit is not None and since > limit:
        return f"it ran longer than batch_timeout_seconds={limit:g}"
    return None


def _cancel_children(state: State) -> list[Command]:
    """After a cancelling stop: at once what does not run yet; running children once their items had their grace."""
    if not state.cancelling:
        return []
    graced = state.tally.now >= state.stop_at + state.setup.item_grace
    runs: list[RunId] = []
    for index in sorted(state.active):
        batch = state.batches[index]
        if batch.stage is Stage.IN_FLIGHT and batch.run and (graced or batch.phase is not Phase.RUNNING):
            state.move_by_time(batch, Stage.STOPPING)
            runs.append(batch.run)
    return [ev.Cancel(tuple(runs), spare_running=not graced)] if runs else []


def _spare(state: State, event: ev.Spared) -> None:
    """What was known of these children was old: they run, and get the grace of running ones."""
    for index in sorted(state.active):
        batch = state.batches[index]
        if batch.stage is Stage.STOPPING and batch.run in event.runs and batch.giving_up is None:
            state.move_by_time(batch, Stage.IN_FLIGHT)
            batch.phase, batch.phase_since, batch.started = Phase.RUNNING, state.tally.now, True


# ------------------------------------------------------------------ the window


def _fill(state: State) -> list[Command]:
    commands: list[Command] = []
    if state.stop is not None or state.paused or state.tally.now < state.submit_not_before:
        return commands
    while len(state.active) < state.window and state.submitting < state.setup.submit_concurrency:
        if (index := _next(state)) is None:
            break
        batch = state.batches[index]
        state.move_by_time(batch, Stage.SUBMITTING)
        commands.append(ev.Submit(index, batch.attempt))
    return commands


def _next(state: State) -> int | None:
    while state.retry:
        index = state.retry.popleft()
        if state.batches[index].stage is Stage.WAITING:  # a parent that took over may have adopted its child since
            return index
    while state.next_new < len(state.batches):
        batch = state.batches[state.next_new]
        state.next_new += 1
        if batch.stage is Stage.WAITING and batch.attempt == 0:
            return batch.index
    return None


def _on_control(state: State, event: ev.ControlChanged) -> list[Command]:
    state.standing.apply(event)
    if state.kill_switch is not None:
        state.tally.remember_at_least(state.kill_switch.windows())
    return []
