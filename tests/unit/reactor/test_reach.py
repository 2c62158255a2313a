"""Whether child runs that do not reach the job folder end the job, or are attempts that were lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.machine import State
from orchestrator.core.machine import events as ev
from orchestrator.core.model import UNREACHABLE, Phase, StopCause, StopMode
from orchestrator.reactor.reach import Reach
from tests.unit.reactor.jobs import prepared

CLOSE = ev.Close(1, 1, Phase.FAILED, "Cannot reach the job folder /jobs/x from host there: it is not mounted. Mount it")


@pytest.fixture
def job():
    return prepared().job


def reach_of(job, *, troubled: bool = False, state_name: str = UNREACHABLE) -> Reach:
    state = State(job.setup)
    state.batches[1].state_name, state.batches[1].phase = state_name, Phase.FAILED
    state.batches[1].attempt = 1
    return Reach(job, state, lambda: troubled)


def test_when_nobody_ever_reached_the_folder_the_job_ends_with_both_views(job):
    reach = reach_of(job)
    assert reach.concerns(CLOSE)
    stop = reach.judge(CLOSE)
    assert (stop.mode, stop.cause) == (StopMode.CANCEL, StopCause.FAILED)
    assert (
        "cannot reach the job folder /jobs/x from host there: it is not mounted. Mount it. This parent run"
        in stop.reason
    )
    assert f"reads and writes {job.folder.url}" in stop.reason
    assert job.deployment_of(1).name in stop.reason


def test_once_one_child_run_was_there_another_that_is_not_is_a_lost_attempt(job):
    job.folder.store.put_new("b/0/a0.jsonl", b"{}\n")
    reach = reach_of(job)
    assert reach.judge(CLOSE) is None
    job.folder.store.delete("b/0/a0.jsonl")
    assert reach.judge(CLOSE) is None, "what was seen once is remembered"


def test_what_the_parent_wrote_of_lost_attempts_is_no_trace_of_a_child(job):
    job.folder.store.put_new("b/1/a0.revoked", b'{"format":1,"records":0}')
    assert reach_of(job).judge(CLOSE) is not None


def test_a_parent_in_trouble_with_the_storage_itself_concludes_nothing(job):
    assert reach_of(job, troubled=True).judge(CLOSE) is None


def test_a_first_attempt_is_tried_again_before_anything_is_concluded(job):
    first = replace(CLOSE, attempt=0)
    assert reach_of(job).judge(first) is None
    once = replace(job, setup=replace(job.setup, batch_retries=0))
    assert reach_of(once).judge(first) is not None, "where nothing is tried again, the first one speaks for all"


@pytest.mark.parametrize("state_name", ["Failed", "Refused", "Crashed"])
def test_other_ends_of_child_runs_are_none_of_its_business(job, state_name):
    assert not reach_of(job, state_name=state_name).concerns(CLOSE)


def test_a_run_that_was_given_up_or_a_job_that_stops_is_none_of_its_business(job):
    reach = reach_of(job)
    reach._state.batches[1].giving_up = "it took too long"
    assert not reach.concerns(CLOSE)
    assert not reach_of(job).concerns(ev.Close(1, 2, Phase.FAILED, ""))
