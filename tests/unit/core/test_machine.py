"""What the machine promises, rule by rule, each as the sequence of events that would break it."""

from __future__ import annotations

import pytest

from orchestrator.core.killswitch import parse
from orchestrator.core.machine import Stage
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

# ---------------------------------------------------------------- the window


def test_no_more_children_are_asked_for_than_the_window_holds():
    play = Play(*[1] * 10, max_in_flight=3, submit_concurrency=10)
    assert kinds(play.said) == ["Submit"] * 3
    play.submitted(0)
    assert kinds(play.wait(1)) == []
    play.ends(done(1), 0)
    assert play.said[-2:] == [ev.Settle(0, 0, BatchOutcome.COMPLETED, ""), ev.Submit(3, 0)]


@pytest.mark.parametrize("stage", ["submitting", "unknown", "in flight", "stopping", "closing"])
def test_a_child_holds_its_place_until_its_batch_is_settled(stage):
    play = Play(1, 1, 1, max_in_flight=1)
    if stage != "submitting":
        play.play(ev.SubmissionLost(0, 0))
    if stage not in ("submitting", "unknown"):
        play.submitted(0, Phase.PENDING)
    if stage in ("stopping", "closing"):
        play.wait(601)
    if stage == "closing":
        play.seen(Phase.CANCELLED)
    assert play.stage(0).value == stage
    assert play.wait(1) == [] or stage == "unknown"
    assert not any(isinstance(c, ev.Submit) and c.batch != 0 for c in play.said)


def test_creations_go_one_at_a_time_unless_told_otherwise():
    play = Play(1, 1, 1, max_in_flight=3)
    assert kinds(play.said) == ["Submit"]
    assert play.submitted(0) == [ev.Submit(1, 0)]
    together = Play(1, 1, 1, max_in_flight=3, submit_concurrency=2)
    assert kinds(together.said) == ["Submit", "Submit"]


def test_the_window_can_grow_and_shrink():
    play = Play(*[1] * 10, max_in_flight=2, submit_concurrency=10)
    assert len(play.play(ev.ControlChanged(max_in_flight=4))) == 2
    play.play(ev.ControlChanged(max_in_flight=1))
    for batch in range(3):
        play.submitted(batch)
        assert kinds(play.ends(done(1), batch)) == ["Close", "Settle"], "above the new window nothing is asked for"
    play.submitted(3)
    assert play.ends(done(1), 3)[-1] == ev.Submit(4, 0)
    assert play.state.max_in_flight_seen == 4


def test_a_paused_job_submits_nothing_and_goes_on_where_it_was():
    play = Play(1, 1, max_in_flight=1)
    play.play(ev.ControlChanged(paused=True))
    play.submitted(0)
    play.ends(done(1), 0)
    assert play.wait(100) == []
    assert play.play(ev.ControlChanged(paused=False)) == [ev.Submit(1, 0)]


def test_time_in_which_an_operator_paused_the_job_is_no_stall():
    play = Play(1, 1, max_in_flight=1, kill_switch="stalled > 3600")
    play.play(ev.ControlChanged(paused=True))
    play.submitted(0)
    play.ends(done(1), 0)
    for _ in range(10):
        play.wait(1000)
    assert play.state.stop is None
    play.play(ev.ControlChanged(paused=False))
    play.wait(3601)
    assert play.state.stop is not None, "a stall after the pause is one"


# ---------------------------------------------------------------- news


def test_news_of_an_older_attempt_changes_nothing():
    play = Play(3)
    play.submitted(0, Phase.RUNNING)
    play.ends(lost(1, 2), phase=Phase.CRASHED)
    play.submitted(0, attempt=1)
    for event in (
        ev.RunSeen(0, 0, Phase.COMPLETED),
        ev.RunVanished(0, 0),
        ev.Submitted(0, 0, run_of(0), Phase.RUNNING),
        ev.Closed(0, 0, done(3)),
        ev.SubmissionRefused(0, 0, "no"),
        ev.Restored(0, 0, done(3)),
    ):
        assert play.play(event) == []
    assert (play.stage(), play.state.batches[0].attempt) == (Stage.IN_FLIGHT, 1)
    assert play.state.tally.succeeded == 1


def test_older_counts_do_not_replace_newer_ones():
    play = Play(10)
    play.submitted(0, Phase.RUNNING)
    play.progress(5, Counts(6))
    play.progress(4, Counts(2))
    play.progress(5, Counts(3))
    assert play.state.tally.succeeded == 6
    play.progress(6, Counts(7))
    assert play.state.tally.succeeded == 7


@pytest.mark.parametrize(
    ("batch", "attempt", "counts"), [(99, 0, Counts(1)), (-1, 0, Counts(1)), (0, 1, Counts(1)), (0, 0, Counts(11))],
    ids=["no such batch", "negative batch", "no such attempt", "more than there are"],
)  # fmt: skip
def test_counts_that_cannot_be_change_nothing(batch, attempt, counts):
    play = Play(10)
    play.submitted(0, Phase.RUNNING)
    assert play.progress(1, counts, batch, attempt) == []
    assert play.state.tally.settled == 0


def test_counts_of_a_batch_that_is_over_change_nothing():
    play = Play(10, 10)
    play.submitted(0, Phase.RUNNING)
    play.ends(done(10), 0)
    play.progress(99, Counts(3), 0)
    assert play.state.tally.succeeded == 10


def test_the_ledger_decides_whatever_the_news_said():
    play = Play(10)
    play.submitted(0, Phase.RUNNING)
    play.progress(1, Counts(9))
    play.ends(done(7, 3))
    assert (play.state.tally.succeeded, play.state.tally.failed) == (7, 3)


@pytest.mark.parametrize("phase", [p for p in Phase if p.is_terminal])
def test_what_prefect_calls_the_end_decides_nothing_about_items(phase):
    play = Play(3)
    play.submitted(0, Phase.RUNNING)
    play.ends(done(3), phase=phase)
    assert outcomes(play) == ["completed"]
    assert play.state.verdict is Verdict.COMPLETED


@pytest.mark.parametrize(
    "reading",
    [
        Reading(Counts(5), 0, 0, ended=True),
        Reading(Counts(1), 9, 9, ended=False),
        Reading(Counts(2, 9), -1, 0, ended=True),
        Reading(Counts(0, 7), 0, -5, ended=False),
    ],
)
def test_a_ledger_that_says_more_than_there_is_is_made_to_add_up(reading):
    play = Play(3, batch_retries=0)
    play.submitted(0, Phase.RUNNING)
    play.ends(reading, phase=Phase.CRASHED)
    tally = play.state.tally
    assert tally.succeeded + tally.failed + tally.unknown + tally.not_started == 3
    assert min(tally.succeeded, tally.failed, tally.unknown, tally.not_started) >= 0
    assert play.state.is_over


# ---------------------------------------------------------------- Prefect is away


def test_after_each_deferral_the_next_creation_waits_longer_up_to_a_quarter_minute():
    play = Play(1)
    waited = []
    for _ in range(7):
        play.play(ev.SubmissionDeferred(0, 0))
        began = play.now
        while play.stage() is Stage.WAITING:
            play.wait(0.5)
        waited.append(play.now - began)
    assert waited == [1, 2, 4, 8, 15, 15, 15]


def test_a_creation_that_succeeds_ends_the_back_off():
    play = Play(1, 1, max_in_flight=2)
    for _ in range(4):
        play.play(ev.SubmissionDeferred(0, 0))
        play.wait(15)
    play.submitted(0)
    play.play(ev.SubmissionDeferred(1, 0))
    assert play.wait(1) == [ev.Submit(1, 0)]


def test_a_deferred_batch_comes_before_those_never_asked_for():
    play = Play(1, 1, 1, max_in_flight=3)
    play.play(ev.SubmissionDeferred(0, 0))
    assert play.wait(1) == [ev.Submit(0, 0)]


def test_a_batch_deferred_and_then_adopted_is_not_asked_for_again():
    play = Play(1, 1, max_in_flight=1)
    play.play(ev.SubmissionDeferred(0, 0))
    play.play(ev.Submitted(0, 0, run_of(0), Phase.RUNNING))
    assert play.wait(5) == []
    assert play.ends(done(1), 0)[-1] == ev.Submit(1, 0)


# ---------------------------------------------------------------- creations nobody can account for


def test_a_lost_answer_is_asked_again_under_the_same_key():
    play = Play(1)
    play.play(ev.SubmissionLost(0, 0))
    assert play.wait(1.9) == []
    assert play.wait(0.1) == [ev.Submit(0, 0)]
    assert play.wait(100) == [], "one question at a time"
    play.play(ev.SubmissionLost(0, 0))
    assert play.wait(2) == [ev.Submit(0, 0)]
    play.submitted(0)
    assert play.stage() is Stage.IN_FLIGHT


def test_after_a_stop_a_lost_creation_is_only_asked_about():
    play = Play(1)
    play.play(ev.SubmissionLost(0, 0))
    play.stop(StopMode.DRAIN)
    assert play.wait(2) == [ev.Resolve(0, 0)]
    play.play(ev.SubmissionAbsent(0, 0))
    assert play.wait(2) == [ev.Resolve(0, 0)]
    play.play(ev.SubmissionDeferred(0, 0))
    assert play.wait(1) == [ev.Resolve(0, 0)]
    assert play.submitted(0, Phase.RUNNING) == [], "while draining it may finish"
    play.ends(done(1))
    assert outcomes(play) == ["completed"]


@pytest.mark.parametrize("mode", list(StopMode))
def test_a_creation_that_stays_unknown_does_not_hold_the_job_up_for_ever(mode):
    play = Play(1)
    play.play(ev.SubmissionLost(0, 0))
    play.stop(mode)
    assert ev.Close(0, 0, None) in play.wait(30)
    play.closed(lost(0, 0, not_started=1))
    assert outcomes(play) == ["unconfirmed"]
    assert play.state.is_over


def test_its_child_is_cancelled_when_it_shows_up_after_the_end():
    play = Play(1)
    play.play(ev.SubmissionLost(0, 0))
    play.stop()
    play.wait(30)
    play.closed(lost(0, 0, not_started=1))
    assert play.state.is_over
    assert play.submitted(0, Phase.RUNNING) == [ev.Cancel((run_of(0),))]
    assert play.submitted(0, Phase.RUNNING) == [], "once"


def test_one_that_shows_up_after_the_end_and_is_over_needs_no_cancel():
    play = Play(1)
    play.stop()
    play.wait(30)
    play.closed(lost(0, 0, not_started=1))
    assert play.submitted(0, Phase.COMPLETED) == []


# ---------------------------------------------------------------- lost attempts


def test_a_lost_attempt_is_tried_again_under_a_new_one():
    play = Play(3)
    play.submitted(0, Phase.RUNNING)
    said = play.ends(lost(1, 1, 1), phase=Phase.CRASHED)
    assert said == [
        ev.Close(0, 0, Phase.CRASHED),
        ev.TryAgain(0, 0, "its run ended as Crashed before all its items had an outcome"),
        ev.Submit(0, 1),
    ]
    play.submitted(0, Phase.RUNNING, attempt=1)
    play.ends(done(3), attempt=1)
    assert outcomes(play) == ["completed"]
    assert play.state.tally.crashed_attempts == 1


@pytest.mark.parametrize(
    ("phase", "reading", "words"),
    [
        (None, lost(0, 3), "its run was deleted"),
        (Phase.COMPLETED, lost(0, 3), "ended as Completed before"),
        (Phase.CANCELLED, done(1, reason=EndReason.LEASE_LOST, left=2), "ended early (lease lost)"),
        (Phase.CRASHED, done(1, reason=EndReason.STUCK, left=2), "ended early (stuck)"),
        (Phase.FAILED, done(1, reason=EndReason.LEDGER_FAILED, left=2), "ended early (ledger failed)"),
        (Phase.CRASHED, done(1, reason=EndReason.TERMINATED, left=2), "ended early (terminated)"),
        (Phase.CANCELLED, done(1, reason=EndReason.REVOKED, left=2), "ended early (revoked)"),
    ],
)
def test_why_an_attempt_was_lost_is_said(phase, reading, words):
    play = Play(3)
    play.submitted(0, Phase.RUNNING)
    play.play(ev.RunVanished(0, 0) if phase is None else ev.RunSeen(0, 0, phase))
    (again, *_) = play.closed(reading)
    assert isinstance(again, ev.TryAgain)
    assert words in again.reason


@pytest.mark.parametrize(("phase", "outcome"), [(Phase.CRASHED, "crashed"), (Phase.FAILED, "failed")])
def test_a_batch_whose_attempts_are_used_up_has_its_last_ones_outcome(phase, outcome):
    play = Play(3, batch_retries=1)
    for attempt in range(2):
        play.submitted(0, Phase.RUNNING, attempt)
        play.ends(lost(0, 1, 2), attempt=attempt, phase=phase)
    assert outcomes(play) == [outcome]
    assert (play.state.tally.unknown, play.state.tally.not_started) == (1, 2)


def test_lost_batches_wait_their_turn_in_the_order_they_were_lost():
    play = Play(1, 1, 1, 1, max_in_flight=2, submit_concurrency=2)
    play.submitted(0, Phase.RUNNING)
    play.submitted(1, Phase.RUNNING)
    play.play(ev.ControlChanged(paused=True))
    play.ends(lost(0, 1), 1, phase=Phase.CRASHED)
    play.ends(lost(0, 1), 0, phase=Phase.CRASHED)
    assert play.play(ev.ControlChanged(paused=False)) == [ev.Submit(1, 1), ev.Submit(0, 1)]


def test_a_child_cancelled_by_somebody_else_is_not_tried_again():
    play = Play(3)
    play.submitted(0, Phase.RUNNING)
    play.ends(lost(1, 1, 1), phase=Phase.CANCELLED)
    assert outcomes(play) == ["cancelled"]
    assert "cancelled by someone else" in play.state.notes[0]


def test_a_batch_without_any_success_failed_and_one_with_a_success_completed():
    play = Play(3, 3, submit_concurrency=2)
    play.submitted(0, Phase.RUNNING)
    play.submitted(1, Phase.RUNNING)
    play.ends(done(0, 3), 0)
    play.ends(done(1, 2), 1)
    assert outcomes(play) == ["failed", "completed"]


def test_a_folder_that_cannot_be_read_stops_the_job_and_its_batch_counts_what_is_known():
    play = Play(5, 5)
    play.submitted(0, Phase.RUNNING)
    play.progress(1, Counts(2))
    play.seen(Phase.COMPLETED)
    said = play.play(ev.CloseFailed(0, 0, "disk on fire"))
    assert any(isinstance(c, ev.WriteStop) and c.record.cause is StopCause.FAILED for c in said)
    assert (play.state.tally.succeeded, play.state.tally.unknown) == (2, 3)
    assert outcomes(play)[0] == "unconfirmed"


def test_notes_for_people_are_bounded():
    play = Play(*[1] * 300, max_in_flight=300, submit_concurrency=300, batch_retries=0)
    for batch in range(300):
        play.submitted(batch, Phase.RUNNING)
        play.ends(lost(0, 1), batch, phase=Phase.CANCELLED)
    assert len(play.state.notes) == 100


# ---------------------------------------------------------------- timeouts


def test_a_child_that_stays_pending_is_cancelled_and_its_batch_tried_again():
    play = Play(1, start_timeout=60)
    play.submitted(0, Phase.SCHEDULED)
    assert play.wait(10_000) == [], "waiting for a place is not starting"
    play.seen(Phase.PENDING)
    assert play.wait(60) == []
    assert play.wait(0.1) == [ev.Cancel((run_of(0),))]
    assert play.wait(100) == [], "asked once"
    said = play.ends(lost(0, 0, 1), phase=Phase.CANCELLED)
    assert ev.Submit(0, 1) in said
    assert any("did not start within 60 s" in c.reason for c in said if isinstance(c, ev.TryAgain))


def test_a_child_that_runs_too_long_is_cancelled_and_its_batch_tried_again():
    play = Play(1, batch_timeout=60)
    play.submitted(0, Phase.RUNNING)
    play.wait(61)
    assert play.stage() is Stage.STOPPING
    said = play.ends(lost(0, 1), phase=Phase.CANCELLED)
    assert ev.Submit(0, 1) in said


def test_a_child_given_up_that_finished_all_the_same_is_not_tried_again():
    play = Play(1, batch_timeout=60)
    play.submitted(0, Phase.RUNNING)
    play.wait(61)
    play.ends(done(1))
    assert outcomes(play) == ["completed"]


def test_each_phase_has_its_own_clock():
    play = Play(1, start_timeout=60, batch_timeout=60)
    play.submitted(0, Phase.PENDING)
    play.wait(50)
    play.seen(Phase.RUNNING)
    assert play.wait(50) == []
    play.seen(Phase.RUNNING)
    assert play.wait(11) == [ev.Cancel((run_of(0),))]


def test_time_never_goes_back():
    play = Play(1)
    play.now = 100.0
    play.wait(0)
    play.now = 50.0
    play.wait(0)
    assert play.state.tally.now == 100.0


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
    assert play.stop()[-1] == ev.Cancel((run_of(0), run_of(1)))
    assert play.wait(11.9) == []
    assert play.wait(0.1) == [ev.Cancel((run_of(2),))]
    assert play.wait(1) == []


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


# ---------------------------------------------------------------- taking over


def test_before_it_has_started_a_job_only_restores():
    play = Play(3, 3, 3, started=False, max_in_flight=2, kill_switch="failed >= 1", submit_concurrency=3)
    said = play.play(
        ev.Restored(0, 0, done(1, 2)),
        ev.Restored(1, 0, lost(1, 2)),
        ev.Submitted(2, 0, run_of(2), Phase.RUNNING),
    )
    assert kinds(said) == ["Settle", "TryAgain"]
    assert play.state.stop is None
    (written, *_) = play.play(ev.Started())
    assert isinstance(written, ev.WriteStop), "then the kill switch is asked"


def test_what_was_restored_is_not_run_again_and_what_was_not_is():
    play = Play(3, 3, 3, 3, started=False, max_in_flight=4, submit_concurrency=4)
    play.play(
        ev.Restored(0, 0, done(3)),
        ev.Restored(1, 1, lost(1, 2)),
        ev.Submitted(2, 0, run_of(2), Phase.RUNNING),
    )
    assert play.play(ev.Started()) == [ev.Submit(1, 2), ev.Submit(3, 0)]
    assert play.state.tally.succeeded == 4


def test_a_batch_restored_and_adopted_goes_on_with_the_adopted_attempt():
    play = Play(3, started=False)
    play.play(ev.Restored(0, 0, lost(1, 2)), ev.Submitted(0, 1, run_of(0, 1), Phase.RUNNING))
    assert play.play(ev.Started()) == []
    play.ends(done(3), attempt=1)
    assert play.state.verdict is Verdict.COMPLETED


def test_a_child_that_ended_while_there_was_no_parent_is_read():
    play = Play(3, started=False)
    assert play.submitted(0, Phase.CRASHED) == [ev.Close(0, 0, Phase.CRASHED)]
    play.play(ev.Started())
    assert ev.Submit(0, 1) in play.closed(lost(1, 2))


def test_a_job_whose_batches_are_all_restored_is_over_when_it_starts():
    play = Play(3, 3, started=False)
    play.play(ev.Restored(0, 0, done(3)), ev.Restored(1, 0, done(3)))
    assert play.state.verdict is None
    assert play.play(ev.Started()) == [ev.Finish(Verdict.COMPLETED)]


def test_a_stop_from_before_is_carried_out_by_the_next_parent():
    play = Play(3, 3, 3, started=False)
    play.submitted(0, Phase.RUNNING)
    play.play(
        ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.TRIPPED, "kill switch: x", "kill switch"), written=True)
    )
    assert play.play(ev.Started()) == []
    assert play.wait(12) == [ev.Cancel((run_of(0),))]
    play.ends(lost(1, 2), phase=Phase.CANCELLED)
    assert play.state.verdict is Verdict.TRIPPED


def test_time_before_the_start_is_neither_elapsed_nor_a_stall():
    play = Play(1, started=False)
    play.now = 500.0
    play.play(ev.Started())
    assert (play.state.tally.number("elapsed"), play.state.tally.number("stalled")) == (0, 0)


# ---------------------------------------------------------------- the end


def test_an_empty_job_is_completed_when_it_starts():
    play = Play()
    assert play.said == [ev.Finish(Verdict.COMPLETED)]


@pytest.mark.parametrize(
    ("cause", "verdict"),
    [
        (StopCause.REQUESTED, Verdict.CANCELLED),
        (StopCause.PARENT_CANCELLED, Verdict.CANCELLED),
        (StopCause.FAILED, Verdict.FAILED),
        (StopCause.TRIPPED, Verdict.TRIPPED),
        (StopCause.ENOUGH, Verdict.ENOUGH),
    ],
)
def test_the_cause_of_a_stop_is_the_verdict(cause, verdict):
    play = Play(1, 1, max_in_flight=1)
    play.play(ev.SubmissionDeferred(0, 0))
    play.stop(cause=cause)
    assert play.state.verdict is verdict


def test_a_refused_creation_fails_the_job_with_its_reason():
    play = Play(1, 1)
    play.play(ev.SubmissionRefused(0, 0, "the deployment was deleted"))
    assert play.state.verdict is Verdict.FAILED
    assert "batch 1" in play.state.stop.reason
    assert "the deployment was deleted" in play.state.stop.reason


def test_after_the_end_nothing_happens_any_more():
    play = Play(1)
    play.submitted(0, Phase.RUNNING)
    play.ends(done(1))
    assert play.wait(1000) == []
    assert play.stop() == []
    assert play.play(ev.Superseded()) == []
    assert play.state.verdict is Verdict.COMPLETED


def test_a_parent_that_was_superseded_does_nothing_more():
    play = Play(1, 1)
    assert play.play(ev.Superseded()) == [ev.StandDown()]
    assert play.submitted(0, Phase.RUNNING) == []
    assert play.wait(1000) == []
    assert play.state.is_over
    assert play.state.verdict is None
