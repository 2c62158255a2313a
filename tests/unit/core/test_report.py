"""The report: what it says, its JSON, and that its numbers add up."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.machine import events as ev
from orchestrator.core.model import Counts, Failure, Phase, StopCause, Verdict
from orchestrator.core.report import (
    BatchCounts,
    ErrorCluster,
    ItemCounts,
    KillSwitchReport,
    Report,
    build_report,
    error_clusters,
)
from orchestrator.errors import ConfigurationError
from tests.unit.core.play import Play, done, lost

ISSUE_KEYS = {
    "job_id", "verdict", "failed_by_rule", "reason", "deployment", "seconds", "items", "batches", "kill_switch",
    "errors", "max_in_flight_seen", "api_requests", "storage", "url",
}  # fmt: skip
OUR_KEYS = {"max_in_flight", "notes", "retry_of"}


def report(verdict: Verdict = Verdict.COMPLETED, *, succeeded: int = 0, failed: int = 0, unknown: int = 0,
           not_started: int = 0, **more: Any) -> Report:  # fmt: skip
    items = ItemCounts(succeeded + failed + unknown + not_started, succeeded, failed, unknown, not_started)
    return Report(
        **{
            "job_id": "j", "verdict": verdict, "failed_by_rule": False, "reason": "", "deployment": "d/e",
            "seconds": 1.23456, "items": items, "batches": BatchCounts(1, 1, 0, 0, 0, 0, 0),
            "kill_switch": KillSwitchReport("failed >= 3"), **more,
        }
    )  # fmt: skip


def built(play: Play, **more: Any) -> Report:
    return build_report(play.state, **{"job_id": "j", "deployment": "d/e", "failed_by_rule": False, **more})


def tripped() -> Play:
    play = Play(3, 3, 3, max_in_flight=1, kill_switch="failed >= 2")
    play.submitted(0, Phase.RUNNING)
    play.progress(1, Counts(1, 2, 2, {"ValueError": 2}, Failure(1, "k1", "ValueError", "bad pixel")))
    play.ends(lost(1, 2), phase=Phase.CANCELLED)
    return play


# ---------------------------------------------------------------- JSON


def test_the_json_has_exactly_the_promised_keys_and_ours():
    data = report().to_json()
    assert set(data) == ISSUE_KEYS | OUR_KEYS
    assert set(data["items"]) == {"total", "succeeded", "failed", "unknown", "not_started"}
    assert set(data["batches"]) == {
        "total", "completed", "failed", "crashed", "cancelled", "not_submitted", "unconfirmed"
    }  # fmt: skip
    assert set(data["kill_switch"]) == {"expression", "tripped", "clause", "at", "first_failure", "batch"}
    assert data["verdict"] == "completed"
    assert data["seconds"] == 1.235


def test_errors_in_the_json_have_type_count_and_example():
    data = report(errors=(ErrorCluster("ValueError", 3, "no"),)).to_json()
    assert data["errors"] == [{"type": "ValueError", "count": 3, "example": "no"}]


@pytest.mark.parametrize("play", [tripped, lambda: Play()], ids=["tripped", "empty"])
def test_a_report_comes_back_from_its_json_text(play):
    before = built(play(), api_requests=7, storage="s3://b/j", url="http://ui/run")
    after = Report.from_json(json.loads(json.dumps(before.to_json())))
    assert after == replace(before, seconds=round(before.seconds, 3))


@pytest.mark.parametrize(
    "damage",
    [
        {"verdict": "splendid"},
        {"items": {"total": 1}},
        {"items": None},
        {"kill_switch": "failed > 3"},
        {"kill_switch": {"expression": None, "colour": "red"}},
        {"kill_switch": {"expression": None, "first_failure": {"index": 1}}},
        {"errors": [{"kind": "x"}]},
        {"errors": None},
        {"batches": []},
    ],
    ids=str,
)
def test_a_damaged_report_is_one_error_that_says_what_to_do(damage):
    with pytest.raises(ConfigurationError, match="settle it again"):
        Report.from_json({**report().to_json(), **damage})


@pytest.mark.parametrize("missing", ["verdict", "items", "job_id", "kill_switch"])
def test_a_report_without_its_parts_is_damaged(missing):
    data = report().to_json()
    del data[missing]
    with pytest.raises(ConfigurationError, match="damaged"):
        Report.from_json(data)


# ---------------------------------------------------------------- for people


@pytest.mark.parametrize(
    ("of", "headline"),
    [
        (report(), "no items"),
        (report(succeeded=1000), "all 1,000 items succeeded"),
        (report(succeeded=9_988, failed=12), "12 of 10,000 items failed"),
        (report(failed=3), "3 of 3 items failed"),
        (report(succeeded=8, unknown=2), "of 10 items: 8 succeeded, 2 unknown"),
        (report(succeeded=6, failed=1, unknown=2, not_started=1),
         "of 10 items: 6 succeeded, 1 failed, 2 unknown, 1 not started"),
        (report(Verdict.TRIPPED, succeeded=6, failed=4, reason="kill switch: failed >= 4"),
         "kill switch: failed >= 4; 6 of 10 items succeeded"),
        (report(Verdict.CANCELLED, succeeded=1, not_started=1), "cancelled; 1 of 2 items succeeded"),
    ],
)  # fmt: skip
def test_the_headline_says_how_it_ended(of, headline):
    assert of.headline == headline


@pytest.mark.parametrize(
    ("verdict", "by_rule", "code"),
    [
        (Verdict.COMPLETED, False, 0),
        (Verdict.COMPLETED, True, 1),
        (Verdict.ENOUGH, False, 0),
        (Verdict.TRIPPED, False, 1),
        (Verdict.FAILED, False, 1),
        (Verdict.CANCELLED, False, 4),
    ],
)
def test_the_exit_code_is_the_documented_one(verdict, by_rule, code):
    of = report(verdict, failed_by_rule=by_rule)
    assert of.exit_code == code
    assert of.ok is (code == 0)


# ---------------------------------------------------------------- from the machine


def test_a_job_that_is_not_over_has_no_report():
    with pytest.raises(ValueError, match="not over"):
        built(Play(1))


def test_numbers_that_do_not_add_up_are_not_reported():
    play = Play(1)
    play.submitted(0, Phase.RUNNING)
    play.ends(done(1))
    play.state.tally.succeeded += 1
    with pytest.raises(ValueError, match="do not add up"):
        built(play)


def test_a_trip_is_reported_with_clause_numbers_batch_and_first_failure():
    of = built(tripped())
    switch = of.kill_switch
    assert of.verdict is Verdict.TRIPPED
    assert (switch.expression, switch.clause, switch.tripped, switch.batch) == ("failed >= 2", "failed >= 2", True, 0)
    assert switch.at == {"failed": 2.0}
    assert switch.first_failure == Failure(1, "k1", "ValueError", "bad pixel")
    assert of.reason == "kill switch: failed >= 2"


def test_the_last_four_counts_and_the_outcomes_add_up():
    of = built(tripped())
    n, b = of.items, of.batches
    assert n.succeeded + n.failed + n.unknown + n.not_started == n.total == 9
    assert b.completed + b.failed + b.crashed + b.cancelled + b.not_submitted + b.unconfirmed == b.total == 3
    assert (b.cancelled, b.not_submitted) == (1, 2)


def test_a_trip_that_an_earlier_parent_saw_is_reported_by_its_reason():
    play = Play(3, 3, max_in_flight=1, kill_switch="failed >= 2")
    play.play(ev.SubmissionDeferred(0, 0))
    play.stop(cause=StopCause.TRIPPED, reason="kill switch: failed >= 2")
    of = built(play)
    assert (of.kill_switch.tripped, of.kill_switch.clause, of.kill_switch.at) == (True, "kill switch: failed >= 2", {})


def test_without_a_trip_the_switch_is_only_named():
    play = Play(1, kill_switch="failed >= 2")
    play.submitted(0, Phase.RUNNING)
    play.ends(done(1))
    assert built(play).kill_switch == KillSwitchReport("failed >= 2")


def test_a_job_without_a_kill_switch_has_no_expression():
    assert built(Play()).kill_switch.expression is None


def test_errors_come_most_frequent_first_at_most_twenty_and_without_those_taken_back():
    play = Play(*[1000] * 30, max_in_flight=30, submit_concurrency=30)
    for batch in range(30):
        play.submitted(batch, Phase.RUNNING)
        failure = Failure(batch, str(batch), f"E{batch}", f"text {batch}")
        play.progress(1, Counts(0, batch + 1, 0, {f"E{batch}": batch + 1}, failure), batch)
    play.progress(2, Counts(1), 29)
    clusters = error_clusters(play.state)
    assert len(clusters) == 20
    assert clusters[0] == ErrorCluster("E28", 29, "text 28")
    assert all(cluster.count > 0 for cluster in clusters)
    assert "E29" not in {cluster.type for cluster in clusters}
