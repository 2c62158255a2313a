"""Taking a job over: what folder and Prefect say becomes events."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from orchestrator.core.machine import events as ev
from orchestrator.core.model import Counts, EndReason, ItemOutcome, Phase, RunId, StopCause, StopMode, StopRecord
from orchestrator.engine.gateway import Run
from orchestrator.engine.memory import MemoryGateway
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.errors import EngineUnavailableError, StoreUnavailableError
from orchestrator.flows.restore import restore
from orchestrator.reactor import Job
from orchestrator.reactor.job import PassItems
from orchestrator.store import EndRecord, Ledger, OutcomeRecord
from tests.unit.reactor.jobs import prepared


class Known(MemoryGateway):
    """A door behind which there are exactly these runs, by (batch, attempt)."""

    def __init__(self, job: Job, runs: Mapping[tuple[int, int], Phase]) -> None:
        super().__init__()
        self._runs = {
            job.key(b, k): Run(RunId(f"run-{b}-{k}"), "a run", job.key(b, k), None, phase, phase.value, started=True)
            for (b, k), phase in runs.items()
        }
        self.asked: list[int] = []

    async def find_by_keys(self, flow_id: str, keys: Sequence[str]) -> Mapping[str, Run]:
        self.asked.append(len(keys))
        return {key: self._runs[key] for key in keys if key in self._runs}


def worked(job: Job, batch: int, attempt: int, succeeded: int, end: EndReason | None) -> None:
    """An attempt that did so many items and then wrote its end, or died."""
    first, count = job.batches[batch].start, job.batches[batch].count
    ledger = Ledger(job.folder, batch, attempt, count, start=first)
    ledger.open()
    for index in range(first, first + succeeded):
        ledger.record(OutcomeRecord(index, str(index), ItemOutcome.SUCCEEDED))
    if end is not None:
        ledger.end(EndRecord(end, Counts(succeeded)))
    else:
        ledger.close()


def restored(job: Job, runs: Mapping[tuple[int, int], Phase]) -> tuple[list[ev.Event], Known]:
    door = Known(job, runs)
    return asyncio.run(restore(job, door)), door


def submitted(batch: int, attempt: int, phase: Phase) -> ev.Submitted:
    return ev.Submitted(batch, attempt, RunId(f"run-{batch}-{attempt}"), phase, True)


def test_a_job_that_nobody_began_gives_no_events_for_one_question():
    job = prepared(items=5000).job
    events, door = restored(job, {})
    assert (events, door.asked) == ([], [200])


def test_children_without_a_trace_in_the_folder_are_found_by_their_keys():
    events, _ = restored(prepared().job, {(0, 0): Phase.RUNNING, (1, 0): Phase.CRASHED})
    assert events == [submitted(0, 0, Phase.RUNNING), submitted(1, 0, Phase.CRASHED)]


def test_a_batch_whose_child_wrote_its_end_is_over():
    job = prepared().job
    worked(job, 0, 0, 5, EndReason.COMPLETED)
    events, _ = restored(job, {(0, 0): Phase.COMPLETED})
    (event,) = events
    assert isinstance(event, ev.Restored)
    assert (event.batch, event.attempt, event.reading.counts.succeeded) == (0, 0, 5)


def test_a_child_that_wrote_its_end_and_whose_run_goes_on_is_adopted_so_that_it_holds_its_place():
    job = prepared().job
    worked(job, 0, 0, 5, EndReason.COMPLETED)
    events, _ = restored(job, {(0, 0): Phase.RUNNING})
    assert events == [submitted(0, 0, Phase.RUNNING)]


def test_so_is_one_of_a_later_attempt_after_what_came_before_it():
    job = prepared().job
    worked(job, 0, 0, 2, None)
    job.folder.close_attempt(0, 5, 0)
    worked(job, 0, 1, 3, EndReason.COMPLETED)
    events, _ = restored(job, {(0, 0): Phase.CRASHED, (0, 1): Phase.RUNNING})
    first, second = events
    assert isinstance(first, ev.Restored)
    assert (first.attempt, first.reading.counts.succeeded) == (0, 2)
    assert second == submitted(0, 1, Phase.RUNNING)


def test_a_given_up_attempt_comes_with_how_it_ended_and_the_next_is_adopted():
    job = prepared().job
    worked(job, 1, 0, 2, None)
    job.folder.close_attempt(1, 5, 0)
    worked(job, 1, 1, 0, None)
    events, _ = restored(job, {(1, 0): Phase.CANCELLED, (1, 1): Phase.RUNNING})
    first, second = events
    assert isinstance(first, ev.Restored)
    assert (first.attempt, first.phase, first.reading.counts.succeeded) == (0, None, 2), "it was tried again"
    assert second == submitted(1, 1, Phase.RUNNING)


@pytest.mark.parametrize("mode", [StopMode.DRAIN, StopMode.CANCEL])
def test_a_run_that_the_parent_before_created_after_a_drain_which_it_had_not_read_yet_is_found(mode):
    job = prepared().job
    job.folder.request_stop(StopRecord(mode, StopCause.REQUESTED, "enough", "a person"))
    door = Known(job, {})

    async def whole() -> tuple[list[ev.Event], float]:
        loop = asyncio.get_running_loop()
        late = Known(job, {(0, 0): Phase.RUNNING})
        loop.call_later(job.times.fence + 1.0, lambda: setattr(door, "_runs", late._runs))
        return await restore(job, door), loop.time()

    events, seconds = run_virtually(whole())
    if mode is StopMode.DRAIN:
        assert events == [submitted(0, 0, Phase.RUNNING)]
    else:
        assert seconds == 0, "a cancel is not kept waiting: the child reads it before its first item"


def test_one_cancelled_by_hand_stays_cancelled():
    job = prepared().job
    job.folder.close_attempt(1, 5, 0)
    (event,) = restored(job, {(1, 0): Phase.CANCELLED})[0]
    assert isinstance(event, ev.Restored)
    assert event.phase is Phase.CANCELLED


def test_an_attempt_that_runs_and_has_written_is_adopted_not_restored():
    job = prepared().job
    worked(job, 2, 0, 3, None)
    events, _ = restored(job, {(2, 0): Phase.RUNNING})
    assert events == [submitted(2, 0, Phase.RUNNING)]
    assert not job.folder.is_revoked(2, 0)


def test_keys_are_asked_in_pages_until_one_shows_nothing():
    job = prepared(items=5000).job
    runs = {(batch, 0): Phase.RUNNING for batch in range(450)}
    events, door = restored(job, runs)
    assert len(events) == 450
    assert door.asked == [200, 200, 200, 200]


def test_a_trace_in_the_folder_is_found_behind_pages_without_any():
    job = prepared(items=5000).job
    worked(job, 700, 0, 5, EndReason.COMPLETED)
    events, _ = restored(job, {})
    assert [event.batch for event in events if isinstance(event, ev.Restored)] == [700]


def test_of_flows_that_are_not_ours_prefect_says_how_they_ended():
    job = replace(prepared().job, pass_items=PassItems("list", "ids"))
    job.folder.close_by_value(0, 5, 0, ItemOutcome.UNKNOWN)
    events, _ = restored(job, {(0, 0): Phase.CANCELLED, (1, 0): Phase.COMPLETED})
    first, second = events
    assert isinstance(first, ev.Restored)
    assert (first.phase, first.reading.unknown) == (Phase.CANCELLED, 5)
    assert second == submitted(1, 0, Phase.COMPLETED)


def test_while_prefect_is_away_nothing_is_restored():
    class Away(MemoryGateway):
        async def find_by_keys(self, flow_id: str, keys: Sequence[str]) -> Mapping[str, Run]:
            raise EngineUnavailableError("away")

    with pytest.raises(EngineUnavailableError):
        asyncio.run(restore(prepared().job, Away()))


def test_a_question_that_the_job_folder_does_not_answer_is_asked_again(monkeypatch):
    job = prepared().job
    asked: list[int] = []
    attempts = job.folder.attempts

    def once_away():
        asked.append(1)
        if len(asked) == 1:
            raise StoreUnavailableError("away")
        return attempts()

    monkeypatch.setattr(job.folder, "attempts", once_away)
    assert run_virtually(restore(job, Known(job, {}))) == []
    assert len(asked) == 2


def test_a_run_that_the_stopping_job_gave_up_unended_is_named_by_the_next_parent_too():
    job = prepared().job
    job.folder.close_attempt(0, 5, 0)
    cancelling = {(0, 0): Phase.CANCELLING}
    (event,), _ = restored(job, cancelling)
    assert isinstance(event, ev.Restored)
    assert (event.left, event.phase) == (None, Phase.CANCELLED)  # the job goes on: that run will do nothing any more
    job.folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "no more", "a person"))
    (event,), _ = restored(job, cancelling)
    assert isinstance(event, ev.Restored)
    assert (event.left, event.phase) == (RunId("run-0-0"), Phase.CANCELLING)
