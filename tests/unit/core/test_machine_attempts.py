"""Lost attempts, timeouts, and how jobs are taken over and end, each as a sequence of events."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.machine import Stage
from orchestrator.core.machine import events as ev
from orchestrator.core.model import (
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


def test_an_attempt_that_an_earlier_parent_gave_up_is_not_called_deleted():
    play = Play(3, started=False)
    (again, *_) = play.play(ev.Restored(0, 0, lost(1, 2)))
    assert again == ev.TryAgain(0, 0, "an earlier parent run gave it up")


@pytest.mark.parametrize(("phase", "outcome"), [(Phase.CRASHED, "crashed"), (Phase.FAILED, "failed")])
def test_a_batch_whose_attempts_are_used_up_has_its_last_ones_outcome(phase, outcome):
    play = Play(3, batch_retries=1)
    for attempt in range(2):
        play.submitted(0, Phase.RUNNING, attempt)
        play.ends(lost(0, 1, 2), attempt=attempt, phase=phase)
    assert outcomes(play) == [outcome]
    assert (play.state.tally.unknown, play.state.tally.not_started) == (1, 2)


def test_why_a_batch_was_given_up_is_for_people_to_read():
    play = Play(1, batch_retries=0)
    play.submitted(0, Phase.PENDING)
    play.play(ev.RunSeen(0, 0, Phase.CRASHED, False, "Crashed", "no such image"))
    play.closed(lost(0, 0, 1))
    assert outcomes(play) == ["crashed"]
    (note,) = play.state.notes
    assert note.startswith("batch 1 was given up after its only attempt: its run ended as Crashed")
    assert note.endswith("(no such image)")


def test_very_many_batches_that_are_given_up_do_not_crowd_out_what_else_is_to_be_said():
    play = Play(*[1] * 150, batch_retries=0, max_in_flight=150, submit_concurrency=150)
    for batch in range(150):
        play.submitted(batch, Phase.RUNNING)
    for batch in range(149):
        play.ends(lost(0, 1), batch, phase=Phase.CRASHED)
    play.ends(lost(0, 1), 149, phase=Phase.CANCELLED)
    *given_up, cancelled, more = play.state.all_notes()
    assert len(given_up) == 10
    assert "batch 150 was cancelled by someone else" in cancelled
    assert more == "139 more batches were given up"


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
    reason = "it did not start within 60 s of Pending"
    assert play.wait(0.1) == [ev.Recall(0, 0, run_of(0), reason, silent=True)]
    assert play.wait(20) == [], "asked once"
    said = play.ends(lost(0, 0, 1), phase=Phase.CANCELLED)
    assert ev.Submit(0, 1) in said
    assert any("did not start within 60 s" in c.reason for c in said if isinstance(c, ev.TryAgain))


def test_a_child_that_never_starts_is_not_waited_for_beyond_the_cancel_deadline():
    play = Play(1, start_timeout=60, cancel_deadline=30)
    play.submitted(0, Phase.PENDING)
    play.wait(60.1)
    play.seen(Phase.CANCELLING)  # for as long as Prefect takes for one whose worker is gone
    assert play.wait(29) == []
    reason = "it did not start within 60 s of Pending"
    assert play.wait(1.1) == [ev.Close(0, 0, None, reason)]
    assert ev.Submit(0, 1) in play.closed(lost(0, 0, 1))


def test_a_child_that_runs_too_long_is_cancelled_and_its_batch_tried_again():
    play = Play(1, batch_timeout=60)
    play.submitted(0, Phase.RUNNING)
    play.wait(61)
    assert play.stage() is Stage.STOPPING
    assert play.wait(1000) == [], "it is alive: its worker ends it"
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
    assert play.wait(11) == [ev.Recall(0, 0, run_of(0), "it ran longer than batch_timeout_seconds=60")]


def test_time_never_goes_back():
    play = Play(1)
    play.now = 100.0
    play.wait(0)
    play.now = 50.0
    play.wait(0)
    assert play.state.tally.now == 100.0


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


@pytest.mark.parametrize("phase", [Phase.CANCELLING, Phase.CANCELLED])
@pytest.mark.parametrize("ran", [False, True])
def test_a_child_cancelled_in_the_time_of_an_earlier_parent_is_tried_again_unless_it_ran(phase, ran):
    play = Play(3, started=False)
    play.play(ev.Submitted(0, 0, run_of(0), phase, started=ran), ev.Started())
    if phase is Phase.CANCELLING:
        play.seen(Phase.CANCELLED)
    said = play.closed(lost(0, 0, 3))
    assert (ev.Submit(0, 1) in said) is not ran
    assert outcomes(play) == (["cancelled"] if ran else [None])


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


def test_what_a_dead_parent_wanted_to_end_was_not_cancelled_by_somebody_else():
    reason = "it ran longer than batch_timeout_seconds=60"
    for recalled, outcome in ((reason, [None]), (None, ["cancelled"])):
        play = Play(2, started=False)
        play.play(ev.Restored(0, 0, lost(0, 2), Phase.CANCELLED, recalled))
        play.play(ev.Started())
        assert outcomes(play) == outcome
        assert play.state.batches[0].attempt == (1 if recalled else 0)


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.CANCELLING])
def test_a_child_that_a_dead_parent_wanted_to_end_is_asked_again_and_its_batch_tried_again(phase):
    reason = "it ran longer than batch_timeout_seconds=60"
    play = Play(2, started=False)
    play.play(ev.Submitted(0, 0, run_of(0), phase, started=True))
    assert play.play(ev.Recalled(0, 0, reason)) == [ev.Recall(0, 0, run_of(0), reason)]
    assert play.stage() is Stage.STOPPING
    play.play(ev.Started())
    said = play.ends(lost(0, 2), phase=Phase.CANCELLED)
    assert [c.reason for c in said if isinstance(c, ev.TryAgain)] == [reason]


def test_a_child_that_is_over_as_a_dead_parent_wanted_is_tried_again():
    play = Play(2, started=False)
    assert ev.Close(0, 0, Phase.CANCELLED) in play.play(ev.Submitted(0, 0, run_of(0), Phase.CANCELLED, started=True))
    assert play.play(ev.Recalled(0, 0, "it was silent", silent=True)) == []
    play.play(ev.Started())
    assert [c.reason for c in play.closed(lost(0, 2)) if isinstance(c, ev.TryAgain)] == ["it was silent"]


def test_a_silent_child_of_a_dead_parent_is_given_up_at_the_cancel_deadline():
    play = Play(2, started=False)
    play.play(ev.Submitted(0, 0, run_of(0), Phase.RUNNING, started=True))
    play.play(ev.Recalled(0, 0, "it was silent", silent=True))
    play.play(ev.Started())
    assert play.wait(29) == []
    assert play.wait(2) == [ev.Close(0, 0, None, "it was silent")]


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


def test_an_attempt_that_the_parents_silence_ended_is_not_one_of_the_retries():
    play = Play(2, batch_retries=1)
    silence = Reading(Counts(1), 0, 1, ended=True, reason=EndReason.LEASE_LOST)
    for attempt in range(4):
        play.submitted(0, Phase.RUNNING, attempt)
        play.ends(silence, 0, attempt, Phase.CANCELLED)
    assert play.stage() is Stage.SUBMITTING
    assert play.state.batches[0].attempt == 4


def test_a_child_without_a_sign_of_life_is_asked_to_cancel_and_given_up_at_the_cancel_deadline():
    play = Play(3, 3, max_in_flight=1)
    play.submitted(0, Phase.RUNNING)
    reason = "its process gave no sign of life for 95 s"
    assert play.play(ev.FellSilent(0, 0, 95.2)) == [ev.Recall(0, 0, run_of(0), reason, silent=True)]
    assert play.wait(29) == []
    assert play.wait(2) == [ev.Close(0, 0, None, reason)]
    play.closed(lost(1, 2))
    assert [c.reason for c in play.said if isinstance(c, ev.TryAgain)] == ["its process gave no sign of life for 95 s"]
    assert play.state.batches[0].attempt == 1
    assert "batch 1 was not seen to end" in play.state.notes[0]
    assert str(run_of(0)) in play.state.notes[0]


def test_a_child_without_a_sign_of_life_that_had_finished_its_batch_has_finished_it():
    play = Play(3, max_in_flight=1)
    play.submitted(0, Phase.RUNNING)
    play.play(ev.FellSilent(0, 0, 95.2))
    play.wait(31)
    play.closed(done(3))
    assert outcomes(play) == ["completed"]


def test_attempts_without_a_sign_of_life_are_used_up_like_any_other():
    play = Play(3, batch_retries=1)
    for attempt in range(2):
        play.submitted(0, Phase.RUNNING, attempt)
        play.play(ev.FellSilent(0, attempt, 95.0))
        play.wait(31)
        play.closed(lost(0, 3), 0, attempt)
    assert outcomes(play) == ["crashed"]
    assert play.state.tally.crashed_attempts == 2


def test_in_a_cancelling_stop_its_own_deadline_decides_about_a_child_without_a_sign_of_life():
    play = Play(3)
    play.submitted(0, Phase.RUNNING)
    play.play(ev.FellSilent(0, 0, 95.0))
    play.wait(20)
    play.stop()
    play.wait(20)
    assert play.stage() is Stage.STOPPING
    play.wait(11)
    play.closed(lost(0, 3))
    assert outcomes(play) == ["unconfirmed"]


def test_a_batch_that_keeps_dying_goes_on_while_each_death_names_a_suspect_or_comes_further():
    play = Play(3, batch_retries=2)
    further = replace(lost(2, 1), advanced=True)
    for attempt, reading in enumerate((lost(0, 3), lost(0, 3), _suspect(0, 1), _suspect(1, 2), further)):
        play.submitted(0, Phase.RUNNING, attempt)
        play.ends(reading, 0, attempt, Phase.CRASHED)
        assert play.stage() is Stage.SUBMITTING, f"after attempt {attempt}"
    play.submitted(0, Phase.RUNNING, 5)
    play.ends(lost(2, 1), 0, 5, Phase.CRASHED)
    assert outcomes(play) == ["crashed"]


def test_a_parent_that_takes_over_gives_a_batch_whose_last_attempt_came_no_further_no_other_one():
    """As the parent before it did: what an attempt itself ended is in its ledger, whoever reads it."""
    for advanced, expected in ((False, "crashed"), (True, None)):
        play = Play(3, batch_retries=2, started=False)
        play.play(ev.Restored(0, 2, replace(lost(2, 1), advanced=advanced), Phase.CRASHED), ev.Started())
        assert outcomes(play) == [expected]


def test_a_run_that_was_given_up_unended_while_the_job_stopped_stays_unconfirmed_for_the_next_parent():
    play = Play(3, started=False)
    play.play(ev.Restored(0, 0, lost(1, 2), Phase.CANCELLING, left=run_of(0)))
    assert outcomes(play) == ["unconfirmed"]
    assert "Cancelling" in play.state.notes[0]


def _suspect(failed: int, item: int) -> Reading:
    return Reading(Counts(failed=failed), 3 - failed, 0, ended=False, suspect=item)


def test_without_isolation_or_without_retries_enough_for_it_the_retries_are_all_there_is():
    for setup in ({"isolate": False, "batch_retries": 2}, {"batch_retries": 1}):
        play = Play(3, **setup)
        for attempt in range(setup["batch_retries"] + 1):
            play.submitted(0, Phase.RUNNING, attempt)
            play.ends(_suspect(0, 1), 0, attempt, Phase.CRASHED)
        assert outcomes(play) == ["crashed"]
