"""Stops and switches, each as the sequence of events that would break their promise."""

from __future__ import annotations

import pytest

from orchestrator.core.killswitch import parse
from orchestrator.core.machine import events as ev
from orchestrator.core.model import (
    BatchOutcome,
    Counts,
    EndReason,
    Phase,
    Reading,
    StopCause,
    StopMode,
    StopRecord,
    Verdict,
)
from tests.unit.core.play import Play, done, kinds, lost, outcomes, run_of

# ---------------------------------------------------------------- stops


def test_a_stop_is_written_before_anything_else():
    play = Play(1, 1, 1, max_in_flight=2, submit_concurrency=2)
    play.submitted(0, Phase.SCHEDULED)
    said = play.stop()
    assert kinds(said) == ["WriteStop", "Cancel"]


def test_a_stop_that_was_read_from_the_folder_is_not_written_again():
    play = Play(1, 1)
    record = StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "no more", "cli")
    assert play.play(ev.StopRequested(record, written=True)) == []
    assert play.state.stop == record


def test_after_a_stop_nothing_is_asked_for():
    play = Play(1, 1, 1, max_in_flight=2)
    play.stop(StopMode.DRAIN)
    assert play.submitted(0, Phase.RUNNING) == []
    play.ends(done(1), 0)
    assert outcomes(play) == ["completed", "not_submitted", "not_submitted"]
    assert play.state.verdict is Verdict.CANCELLED


def test_a_stop_cancels_at_once_what_does_not_run_and_the_rest_after_the_grace():
    play = Play(1, 1, 1, max_in_flight=3, item_grace=12)
    for batch, phase in enumerate((Phase.SCHEDULED, Phase.PENDING, Phase.RUNNING)):
        play.submitted(batch, phase)
    assert play.stop()[-1] == ev.Cancel((run_of(0), run_of(1)), spare_running=True)
    assert play.wait(11.9) == []
    assert play.wait(0.1) == [ev.Cancel((run_of(2),))]
    assert play.wait(1) == []


def test_a_child_that_had_begun_to_run_unseen_is_spared_until_its_items_had_their_grace():
    play = Play(1, 1, max_in_flight=2, item_grace=12)
    play.submitted(0, Phase.SCHEDULED)
    play.submitted(1, Phase.PENDING)
    play.stop()
    assert play.play(ev.Spared((run_of(1),))) == []
    assert play.wait(11.9) == []
    assert play.wait(0.1) == [ev.Cancel((run_of(1),))]


def test_draining_cancels_nobody_however_long_it_takes():
    play = Play(1)
    play.submitted(0, Phase.RUNNING)
    play.stop(StopMode.DRAIN)
    for _ in range(100):
        assert play.wait(100) == []
    play.ends(done(1))
    assert outcomes(play) == ["completed"]


def test_a_drain_becomes_a_cancel_and_its_clock_begins_then():
    play = Play(1, item_grace=12)
    play.submitted(0, Phase.RUNNING)
    play.stop(StopMode.DRAIN, reason="slowly")
    play.wait(1000)
    said = play.stop(StopMode.CANCEL, StopCause.PARENT_CANCELLED, "at once")
    assert kinds(said) == ["WriteStop"]
    assert said[0].record.reason == "at once"
    assert play.wait(11) == []
    assert play.wait(1) == [ev.Cancel((run_of(0),))]
    assert (play.state.stop.mode, play.state.stop.cause) == (StopMode.CANCEL, StopCause.REQUESTED)
    assert play.state.stop.reason == "slowly", "why it stopped does not change"


@pytest.mark.parametrize("second", list(StopMode))
def test_a_cancel_never_becomes_weaker(second):
    play = Play(1)
    play.submitted(0, Phase.RUNNING)
    play.stop(StopMode.CANCEL)
    assert play.stop(second) == []
    assert play.state.stop.mode is StopMode.CANCEL


def test_who_was_not_seen_to_end_by_the_deadline_is_named():
    play = Play(3, 3, max_in_flight=2)
    play.submitted(0, Phase.RUNNING)
    play.submitted(1, Phase.RUNNING)
    play.stop()
    play.wait(12)
    play.ends(done(3, reason=EndReason.STOPPED), 1, phase=Phase.CANCELLED)
    assert play.wait(18) == [ev.Close(0, 0, None)]
    play.closed(lost(1, 2))
    assert outcomes(play) == ["unconfirmed", "completed"]
    assert play.state.verdict is Verdict.CANCELLED
    assert any("not seen to end" in c.reason for c in play.said if isinstance(c, ev.Settle))


def test_a_cancelled_parent_has_less_time_than_anybody_else():
    play = Play(3, cancel_deadline=30)
    play.submitted(0, Phase.RUNNING)
    play.stop(cause=StopCause.PARENT_CANCELLED)
    assert ev.Close(0, 0, None) in play.wait(23)


def test_a_shorter_deadline_holds_for_a_cancelled_parent_too():
    play = Play(3, cancel_deadline=5, item_grace=60)
    play.submitted(0, Phase.RUNNING)
    play.stop(cause=StopCause.PARENT_CANCELLED)
    assert play.wait(5) == [ev.Close(0, 0, None)]


def test_items_of_stopped_batches_are_unknown_only_where_they_may_have_run():
    play = Play(5, 5, 5, 5, max_in_flight=2)
    play.submitted(0, Phase.RUNNING)
    play.submitted(1, Phase.SCHEDULED)
    play.stop()
    play.ends(done(2, reason=EndReason.STOPPED, left=3), 0, phase=Phase.CANCELLED)
    play.ends(lost(0, 0, 5), 1, phase=Phase.CANCELLED)
    tally = play.state.tally
    assert outcomes(play) == ["cancelled", "cancelled", "not_submitted", "not_submitted"]
    assert (tally.succeeded, tally.unknown, tally.not_started) == (2, 0, 18)


@pytest.mark.parametrize(("mode", "outcome"), [(StopMode.CANCEL, "cancelled"), (StopMode.DRAIN, "crashed")])
def test_an_attempt_lost_after_a_stop_is_not_tried_again(mode, outcome):
    play = Play(3)
    play.submitted(0, Phase.RUNNING)
    play.stop(mode)
    play.ends(lost(1, 2), phase=Phase.CRASHED)
    assert outcomes(play) == [outcome]


def test_a_batch_that_waits_for_its_next_attempt_when_the_job_stops_keeps_what_it_has():
    play = Play(3)
    play.submitted(0, Phase.RUNNING)
    play.play(ev.ControlChanged(paused=True))
    play.ends(lost(1, 1, 1), phase=Phase.CRASHED)
    play.stop()
    assert outcomes(play) == ["cancelled"]
    assert (play.state.tally.succeeded, play.state.tally.unknown, play.state.tally.not_started) == (1, 1, 1)


# ---------------------------------------------------------------- switches


def test_a_kill_switch_trips_once_on_the_event_that_made_it_true_and_remembers_it():
    play = Play(5, 5, max_in_flight=1, kill_switch="failed >= 2 or errors['X'] > 9")
    play.submitted(0, Phase.RUNNING)
    assert play.progress(1, Counts(1, 1)) == []
    said = play.progress(2, Counts(1, 3))
    assert kinds(said) == ["WriteStop"]
    state = play.state
    assert state.stop.cause is StopCause.TRIPPED
    assert (state.tripped_clause, state.tripped_batch) == ("failed >= 2", 0)
    assert state.tripped_numbers["failed"] == 3
    play.progress(3, Counts(1, 4))
    assert state.tripped_numbers["failed"] == 3, "asked no more"
    play.ends(done(1, 4, reason=EndReason.STOPPED), phase=Phase.CANCELLED)
    assert state.verdict is Verdict.TRIPPED


def test_the_last_batch_can_trip_it():
    play = Play(2, kill_switch="failed >= 1")
    play.submitted(0, Phase.RUNNING)
    said = play.ends(done(1, 1))
    assert kinds(said) == ["Close", "Settle", "WriteStop", "Finish"]
    assert play.state.verdict is Verdict.TRIPPED


def test_on_trip_decides_what_becomes_of_children():
    play = Play(5, 5, kill_switch="failed >= 1", on_trip=StopMode.DRAIN, max_in_flight=1)
    play.submitted(0, Phase.RUNNING)
    (written,) = play.progress(1, Counts(0, 1))
    assert written.record.mode is StopMode.DRAIN


def test_time_alone_can_trip_it_and_then_no_batch_is_to_blame():
    play = Play(1, kill_switch="elapsed > 60")
    play.submitted(0, Phase.RUNNING)
    play.wait(61)
    assert play.state.stop.cause is StopCause.TRIPPED
    assert play.state.tripped_batch is None


def test_the_kill_switch_comes_before_enough():
    play = Play(4, kill_switch="failed >= 2", enough_when="succeeded >= 2")
    play.submitted(0, Phase.RUNNING)
    play.ends(done(2, 2))
    assert play.state.verdict is Verdict.TRIPPED


def test_enough_ends_the_job_as_a_success():
    play = Play(4, 4, max_in_flight=1, enough_when="succeeded >= 4")
    play.submitted(0, Phase.RUNNING)
    play.ends(done(4))
    assert play.state.verdict is Verdict.ENOUGH
    assert outcomes(play) == ["completed", "not_submitted"]


def test_a_new_kill_switch_replaces_the_old_one_and_its_windows_are_remembered_from_then_on():
    play = Play(50, 50, max_in_flight=1, kill_switch="failed >= 40")
    play.submitted(0, Phase.RUNNING)
    play.play(ev.ControlChanged(kill_switch=parse("recent_failed_rate(10) >= 0.5")))
    play.progress(1, Counts(20))
    assert play.state.stop is None
    play.progress(2, Counts(20, 10))
    assert play.state.tripped_clause == "recent_failed_rate(10) >= 0.5"


def test_a_batch_settled_without_its_ledger_counts_as_that_says_once_it_can_be_read():
    play = Play(3, 2, max_in_flight=1)
    play.submitted(0, Phase.RUNNING)
    play.seen(Phase.COMPLETED)
    play.play(ev.CloseFailed(0, 0, "away"))
    assert outcomes(play) == ["unconfirmed", "not_submitted"]
    assert (play.state.tally.unknown, play.state.tally.not_started) == (3, 2)
    assert play.state.is_over
    play.closed(Reading(Counts(succeeded=2), 0, 1, ended=True, reason=EndReason.STOPPED))
    tally = play.state.tally
    assert (tally.succeeded, tally.unknown, tally.not_started) == (2, 0, 3)
    assert outcomes(play)[0] == "unconfirmed"
    play.closed(done(3))  # a second reading changes nothing any more
    assert (tally.succeeded, tally.unknown, tally.not_started) == (2, 0, 3)


def test_a_batch_settled_without_its_ledger_is_completed_when_that_shows_all_its_items():
    play = Play(3)
    play.submitted(0, Phase.RUNNING)
    play.seen(Phase.COMPLETED)
    play.play(ev.CloseFailed(0, 0, "away"))
    play.closed(done(3))
    assert outcomes(play) == ["completed"]
    assert (play.state.tally.succeeded, play.state.tally.unknown) == (3, 0)
    assert play.state.tally.outcomes[BatchOutcome.UNCONFIRMED] == 0
