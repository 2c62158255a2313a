"""What the machine promises, rule by rule, each as the sequence of events that would break it."""

from __future__ import annotations

import pytest

from orchestrator.core.machine import Stage
from orchestrator.core.machine import events as ev
from orchestrator.core.model import (
    BatchOutcome,
    Counts,
    Phase,
    Reading,
    StopMode,
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
