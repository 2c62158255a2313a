"""Each row of the machine's table, and each place it leads to, by one explicit sequence of events.

`CASES` is the list; the tests at the end fail for a row, or a destination of a row, that no case reaches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.core.machine import TABLE, Stage
from orchestrator.core.machine import events as ev
from orchestrator.core.machine.table import HOLDS_A_PLACE, TIMED, diagram
from orchestrator.core.model import EndReason, Phase, StopMode
from orchestrator.errors import InvalidTransitionError
from tests.unit.core.play import Play, done, lost, run_of

# ---------------------------------------------------------------- how a batch gets into each stage


def restoring() -> Play:
    return Play(3, started=False)


def waiting_for_capacity() -> Play:
    """Batch 0 had no creation asked for: the window is full with batch 1, adopted from an earlier parent."""
    play = Play(3, 3, started=False, max_in_flight=1)
    play.submitted(1, Phase.RUNNING)
    play.play(ev.Started())
    return play


def submitting(**setup: Any) -> Play:
    return Play(3, **setup)


def unknown(**setup: Any) -> Play:
    play = submitting(**setup)
    play.play(ev.SubmissionLost(0, 0))
    return play


def in_flight(phase: Phase = Phase.RUNNING, **setup: Any) -> Play:
    play = submitting(**setup)
    play.submitted(0, phase)
    return play


def stopping() -> Play:
    play = in_flight(Phase.SCHEDULED)
    play.stop()
    return play


def silent() -> Play:
    """It is being cancelled, in a job that goes on, because its process gave no sign of life."""
    play = in_flight()
    play.play(ev.FellSilent(0, 0, 95.0))
    return play


def closing(**setup: Any) -> Play:
    play = in_flight(**setup)
    play.seen(Phase.COMPLETED)
    return play


def given_up(before: Callable[..., Play]) -> Play:
    """Closing because the cancel deadline passed."""
    play = before()
    play.stop()
    play.wait(31)
    return play


def settled() -> Play:
    play = closing()
    play.closed(done(3))
    return play


def settled_in_a_job_that_goes_on() -> Play:
    play = Play(3, 3)
    play.submitted(0, Phase.RUNNING)
    play.ends(done(3))
    return play


def stopped(play: Play, mode: StopMode = StopMode.CANCEL) -> Play:
    play.stop(mode)
    return play


# ---------------------------------------------------------------- the rows


@dataclass(frozen=True)
class Case:
    """`event` happens in `before`, and then the batch is in `to`."""

    what: str
    before: Callable[[], Play]
    event: ev.Event
    stage: Stage
    to: Stage


def _cases() -> list[Case]:
    w, s, u, f, x, c, z = Stage
    running, over = Phase.RUNNING, Phase.COMPLETED
    ours, absent, dropped = run_of(0), ev.SubmissionAbsent(0, 0), ev.SubmissionLost(0, 0)
    away, refused = ev.SubmissionDeferred(0, 0), ev.SubmissionRefused(0, 0, "deployment deleted")
    late = lambda: given_up(submitting)  # noqa: E731
    end = settled_in_a_job_that_goes_on
    return [
        Case("an attempt was lost before: the next waits", restoring, ev.Restored(0, 0, lost(1, 2)), w, w),
        Case("the batch was over before", restoring, ev.Restored(0, 0, done(3)), w, z),
        Case("a running child is adopted", restoring, ev.Submitted(0, 0, ours, running), w, f),
        Case("a child that ended meanwhile is adopted", restoring, ev.Submitted(0, 0, ours, over), w, c),
        Case("a child to be stopped is adopted late", waiting_for_capacity, ev.Submitted(0, 0, ours, running), w, f),
        #
        Case("it was created", submitting, ev.Submitted(0, 0, ours, Phase.SCHEDULED), s, f),
        Case("it was created after the job stopped", lambda: stopped(submitting()),
             ev.Submitted(0, 0, ours, Phase.SCHEDULED), s, x),
        Case("it existed and is over", submitting, ev.Submitted(0, 0, ours, over), s, c),
        Case("Prefect is away", submitting, away, s, w),
        Case("Prefect is away and the job stopped", lambda: stopped(submitting()), away, s, z),
        Case("the answer was lost", submitting, dropped, s, u),
        Case("it was refused", submitting, refused, s, z),
        #
        Case("it does exist", unknown, ev.Submitted(0, 0, ours, running), u, f),
        Case("it does exist, and must stop", lambda: stopped(unknown()), ev.Submitted(0, 0, ours, Phase.PENDING), u, x),
        Case("it does exist, and is over", unknown, ev.Submitted(0, 0, ours, over), u, c),
        Case("it is not there", unknown, absent, u, u),
        Case("lost again", unknown, dropped, u, u),
        Case("Prefect is away while asked", unknown, away, u, u),
        Case("asked again and refused", unknown, refused, u, z),
        #
        Case("two answers to one creation", in_flight, ev.Submitted(0, 0, ours, running), f, f),
        Case("the second answer shows its end", in_flight, ev.Submitted(0, 0, ours, over), f, c),
        Case("news", in_flight, ev.RunSeen(0, 0, running), f, f),
        Case("its end was read", in_flight, ev.RunSeen(0, 0, over), f, c),
        Case("it was deleted", in_flight, ev.RunVanished(0, 0), f, c),
        Case("its process is gone", in_flight, ev.FellSilent(0, 0, 95.0), f, x),
        Case("an earlier parent wanted its end", in_flight, ev.Recalled(0, 0, "too long"), f, x),
        Case("it does not run yet, or any more", lambda: in_flight(Phase.PENDING), ev.FellSilent(0, 0, 95.0), f, f),
        #
        Case("a second answer while it is cancelled", stopping, ev.Submitted(0, 0, ours, Phase.CANCELLING), x, x),
        Case("a second answer shows its end", stopping, ev.Submitted(0, 0, ours, Phase.CANCELLED), x, c),
        Case("still cancelling", stopping, ev.RunSeen(0, 0, Phase.CANCELLING), x, x),
        Case("cancelled", stopping, ev.RunSeen(0, 0, Phase.CANCELLED), x, c),
        Case("deleted while it was cancelled", stopping, ev.RunVanished(0, 0), x, c),
        Case("no sign of life while it is cancelled", stopping, ev.FellSilent(0, 0, 95.0), x, x),
        #
        Case("an answer after the end was read", closing, ev.Submitted(0, 0, ours, running), c, c),
        Case("absent, after the deadline", late, absent, c, c),
        Case("lost, after the deadline", late, dropped, c, c),
        Case("away, after the deadline", late, away, c, c),
        Case("refused, after the deadline", late, refused, c, c),
        Case("it leaves a terminal state", closing, ev.RunSeen(0, 0, running), c, c),
        Case("deleted after its end", closing, ev.RunVanished(0, 0), c, c),
        Case("it is over, as an earlier parent wanted", closing, ev.Recalled(0, 0, "too long"), c, c),
        Case("no sign of life after its end", closing, ev.FellSilent(0, 0, 95.0), c, c),
        Case("all its items are over", closing, ev.Closed(0, 0, done(3)), c, z),
        Case("the attempt was lost", closing, ev.Closed(0, 0, lost(1, 2)), c, w),
        Case("the folder cannot be read", closing, ev.CloseFailed(0, 0, "disk on fire"), c, z),
        #
        Case("an answer after all is over", end, ev.Submitted(0, 0, ours, running), z, z),
        Case("absent, late", end, absent, z, z),
        Case("lost, late", end, dropped, z, z),
        Case("away, late", end, away, z, z),
        Case("refused, late", end, refused, z, z),
        Case("late news", end, ev.RunSeen(0, 0, running), z, z),
        Case("deleted, late", end, ev.RunVanished(0, 0), z, z),
        Case("no sign of life, late", end, ev.FellSilent(0, 0, 95.0), z, z),
        Case("read twice", end, ev.Closed(0, 0, lost(0, 3)), z, z),
        Case("unreadable, late", end, ev.CloseFailed(0, 0, "disk on fire"), z, z),
    ]  # fmt: skip


CASES = _cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.stage.name}-{type(c.event).__name__}-{c.what}")
def test_an_event_leads_where_its_row_says(case):
    play = case.before()
    assert play.stage() is case.stage, "the case does not begin where it says"
    # A sweep of the switches and of the window follows each event; only the batch itself is looked at.
    commands = play.play(case.event)
    reached = play.stage()
    if case.to is Stage.WAITING and reached is Stage.SUBMITTING:  # its turn came at once
        assert any(isinstance(command, ev.Submit) for command in commands)
        reached = Stage.WAITING
    assert reached is case.to


def test_no_row_of_the_table_is_without_a_case():
    assert {(case.stage, type(case.event)) for case in CASES} == set(TABLE)


def test_each_place_a_row_leads_to_is_reached():
    reached = {(case.stage, type(case.event), case.to) for case in CASES}
    promised = {(stage, event, to) for (stage, event), row in TABLE.items() for to in row.to}
    assert reached == promised


# ---------------------------------------------------------------- what only time and stops do


@dataclass(frozen=True)
class Timed:
    """After `what` the batch, which no event was about, is in `to`."""

    what: str
    before: Callable[[], Play]
    cause: Callable[[Play], Any]
    stage: Stage
    to: Stage


def draining(before: Callable[[], Play]) -> Callable[[], Play]:
    return lambda: stopped(before(), StopMode.DRAIN)


TIMED_CASES = [
    Timed("its turn comes", restoring, lambda p: p.play(ev.Started()), Stage.WAITING, Stage.SUBMITTING),
    Timed("the job stops", waiting_for_capacity, lambda p: p.stop(), Stage.WAITING, Stage.SETTLED),
    Timed("the deadline passes", lambda: stopped(unknown()), lambda p: p.wait(31), Stage.UNKNOWN, Stage.CLOSING),
    Timed("also while draining", draining(unknown), lambda p: p.wait(31), Stage.UNKNOWN, Stage.CLOSING),
    Timed("no answer until the deadline", lambda: stopped(submitting()), lambda p: p.wait(31),
          Stage.SUBMITTING, Stage.CLOSING),
    Timed("the job stops while it waits", lambda: in_flight(Phase.PENDING), lambda p: p.stop(),
          Stage.IN_FLIGHT, Stage.STOPPING),
    Timed("the grace passes", lambda: stopped(in_flight()), lambda p: p.wait(12), Stage.IN_FLIGHT, Stage.STOPPING),
    Timed("it does not start", lambda: in_flight(Phase.PENDING), lambda p: p.wait(601),
          Stage.IN_FLIGHT, Stage.STOPPING),
    Timed("it runs too long", lambda: in_flight(batch_timeout=60), lambda p: p.wait(61),
          Stage.IN_FLIGHT, Stage.STOPPING),
    Timed("the deadline comes before the grace ends", lambda: stopped(in_flight(item_grace=60)),
          lambda p: p.wait(31), Stage.IN_FLIGHT, Stage.CLOSING),
    Timed("it does not end", stopping, lambda p: p.wait(31), Stage.STOPPING, Stage.CLOSING),
    Timed("nobody is left to end it", silent, lambda p: p.wait(31), Stage.STOPPING, Stage.CLOSING),
    Timed("it had begun to run unseen", stopping, lambda p: p.play(ev.Spared((run_of(0),))),
          Stage.STOPPING, Stage.IN_FLIGHT),
]  # fmt: skip


@pytest.mark.parametrize("case", TIMED_CASES, ids=lambda c: f"{c.stage.name}-{c.what}")
def test_time_and_stops_lead_where_the_table_says(case):
    play = case.before()
    assert play.stage() is case.stage
    case.cause(play)
    assert play.stage() is case.to


def test_no_timed_row_is_without_a_case():
    promised = {(stage, to) for stage, row in TIMED.items() for to in row.to}
    assert {(case.stage, case.to) for case in TIMED_CASES} == promised


def test_a_batch_does_not_move_by_itself_where_the_table_has_no_row():
    play = in_flight()
    with pytest.raises(InvalidTransitionError, match="by itself"):
        play.state.move_by_time(play.state.batches[0], Stage.SETTLED)


# ---------------------------------------------------------------- illegal steps


EVENTS: list[ev.Event] = [
    ev.Restored(0, 0, done(3)),
    ev.Submitted(0, 0, run_of(0), Phase.RUNNING),
    ev.Recalled(0, 0, "too long"),
    ev.SubmissionDeferred(0, 0),
    ev.SubmissionLost(0, 0),
    ev.SubmissionRefused(0, 0, "no"),
    ev.SubmissionAbsent(0, 0),
    ev.RunSeen(0, 0, Phase.RUNNING),
    ev.RunVanished(0, 0),
    ev.FellSilent(0, 0, 95.0),
    ev.Closed(0, 0, done(3)),
    ev.CloseFailed(0, 0, "no"),
]
BEFORE = {
    Stage.WAITING: waiting_for_capacity,
    Stage.SUBMITTING: submitting,
    Stage.UNKNOWN: unknown,
    Stage.IN_FLIGHT: in_flight,
    Stage.STOPPING: stopping,
    Stage.CLOSING: closing,
    Stage.SETTLED: settled_in_a_job_that_goes_on,
}


def everything(play: Play) -> Any:
    """All that the state holds, as values."""
    state = play.state
    plain = {name: value for name, value in vars(state).items() if name not in ("setup", "batches", "tally")}
    batches = [{name: getattr(batch, name) for name in batch.__slots__} for batch in state.batches]
    tally = {name: getattr(state.tally, name) for name in state.tally.__slots__}
    return copy.deepcopy((plain, batches, tally))


ILLEGAL = [(stage, event) for stage in Stage for event in EVENTS if (stage, type(event)) not in TABLE]


@pytest.mark.parametrize(
    ("stage", "event"), ILLEGAL, ids=lambda x: x.name if isinstance(x, Stage) else type(x).__name__
)
def test_an_illegal_step_changes_nothing_and_says_so(stage, event):
    play = BEFORE[stage]()
    play.now += 5
    before = everything(play)
    with pytest.raises(InvalidTransitionError) as refused:
        play.play(event)
    assert type(event).__name__ in str(refused.value)
    assert stage.value in str(refused.value)
    assert everything(play) == before


@pytest.mark.parametrize("batch", [-1, 1, 99])
def test_an_event_about_no_batch_changes_nothing_and_says_so(batch):
    play = in_flight()
    play.now += 5
    before = everything(play)
    with pytest.raises(InvalidTransitionError, match="no batch"):
        play.play(ev.RunSeen(batch, 0, Phase.RUNNING))
    assert everything(play) == before


def test_an_event_about_an_attempt_that_does_not_exist_yet_changes_nothing_and_says_so():
    play = in_flight()
    play.now += 5
    before = everything(play)
    with pytest.raises(InvalidTransitionError, match="attempt 0, not 1"):
        play.seen(Phase.RUNNING, attempt=1)
    assert everything(play) == before


# ---------------------------------------------------------------- the table as a whole


def test_settled_is_final():
    assert all(row.to == {Stage.SETTLED} for (stage, _), row in TABLE.items() if stage is Stage.SETTLED)
    assert Stage.SETTLED not in TIMED


def test_only_a_batch_that_was_asked_for_and_is_not_settled_holds_a_place():
    assert set(Stage) - HOLDS_A_PLACE == {Stage.WAITING, Stage.SETTLED}


def test_the_diagram_shows_each_way_from_stage_to_stage():
    text = diagram()
    for (stage, event), row in TABLE.items():
        for to in row.to - {stage}:
            edge = f"{stage.value.replace(' ', '_')} --> {to.value.replace(' ', '_')}:"
            line = next(line for line in text.splitlines() if edge in line)
            assert event.__name__ in line


def test_a_lost_attempt_that_stopped_by_itself_is_no_reason_to_leave_the_table():
    play = closing()
    play.closed(done(1, reason=EndReason.STUCK, left=2))
    assert play.state.batches[0].attempt == 1
