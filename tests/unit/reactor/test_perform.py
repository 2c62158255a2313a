"""Single commands: each ends as an event, whatever goes wrong on the way. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from orchestrator.core.machine import events as ev
from orchestrator.core.model import (
    Counts,
    EndReason,
    ItemOutcome,
    Phase,
    Reading,
    RunId,
    StopCause,
    StopMode,
    StopRecord,
)
from orchestrator.engine.gateway import CancelReply, Run, Submission, always
from orchestrator.engine.memory import MemoryGateway
from orchestrator.engine.pace import Need, Pace, asking
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.errors import (
    EngineUnavailableError,
    StoreCorruptError,
    StoreUnavailableError,
    SubmissionRefusedError,
    SubmissionUnknownError,
)
from orchestrator.reactor import Job
from orchestrator.reactor.perform import Io, Performer, in_background, read_attempt
from tests.unit.reactor.jobs import prepared

STOP = StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "no more", "cli")
ENDED = Reading(Counts(5), 0, 0, ended=True, reason=EndReason.COMPLETED)


class Door(MemoryGateway):
    """Answers what it is told to, one answer per question; the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self._answers = list(answers)
        self.asked: list[Any] = []

    def _answer(self, question: Any) -> Any:
        self.asked.append(question)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def submit(self, submission: Submission, wanted: Callable[[], bool] = always) -> Run:
        return self._answer(submission)

    async def find_by_keys(self, flow_id: str, keys: Sequence[str]) -> Mapping[str, Run]:
        return self._answer(tuple(keys))

    async def request_cancel(self, ids: Sequence[RunId]) -> Mapping[RunId, CancelReply]:
        return self._answer(tuple(ids))


def run_of(phase: Phase = Phase.SCHEDULED) -> Run:
    return Run(RunId("r"), "a run", None, None, phase, phase.value.title())


def done(job: Job, door: Door, work: Callable[[Performer], Awaitable[None]], *, stopping: bool = False):
    """The events that come of it, how often it nudged, and the virtual seconds it took."""
    events: list[ev.Event] = []
    nudges: list[None] = []

    async def whole() -> float:
        performer = Performer(
            job, door, Io(inline=True), events.append, lambda: nudges.append(None), lambda: stopping
        )  # fmt: skip
        await work(performer)
        return asyncio.get_running_loop().time()

    seconds = run_virtually(whole())
    return events, len(nudges), seconds


# ---------------------------------------------------------------- creating


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        (run_of(Phase.PENDING), ev.Submitted(0, 1, RunId("r"), Phase.PENDING)),
        (SubmissionUnknownError("lost", key="k"), ev.SubmissionLost(0, 1)),
        (SubmissionRefusedError("deployment gone"), ev.SubmissionRefused(0, 1, "deployment gone")),
        (EngineUnavailableError("away"), ev.SubmissionDeferred(0, 1)),
    ],
    ids=["created", "lost", "refused", "away"],
)
def test_each_answer_to_a_creation_is_an_event(answer, event):
    job, door = prepared().job, Door(answer)
    events, _, _ = done(job, door, lambda p: p.submit(ev.Submit(0, 1)))
    assert events == [event]
    (sent,) = door.asked
    assert sent.key == job.key(0, 1)
    assert sent.name == "simulated 1/4 again 1"
    assert sent.parameters["batch"]["attempt"] == 1
    assert {"orchestrator", f"job:{job.id}"} <= set(sent.tags)


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (StoreUnavailableError("away"), ev.SubmissionDeferred(0, 0)),
        (StoreCorruptError("items gone"), ev.SubmissionRefused(0, 0, "storage: items gone")),
    ],
)
def test_items_that_cannot_be_read_are_waited_for_unless_they_are_damaged(monkeypatch, error, event):
    job = prepared().job

    def unreadable(self: Job, index: int, attempt: int) -> Submission:
        raise error

    monkeypatch.setattr(Job, "submission", unreadable)
    assert done(job, Door(run_of()), lambda p: p.submit(ev.Submit(0, 0)))[0] == [event]


def test_once_the_job_stops_nothing_is_sent_any_more():
    door = Door(run_of())
    events, _, _ = done(prepared().job, door, lambda p: p.submit(ev.Submit(0, 0)), stopping=True)
    assert events == [ev.SubmissionDeferred(0, 0)]
    assert door.asked == []


@pytest.mark.parametrize(
    ("found", "event"),
    [
        ({"key": run_of(Phase.PENDING)}, ev.Submitted(0, 1, RunId("r"), Phase.PENDING)),
        ({}, ev.SubmissionDeferred(0, 1)),
        (EngineUnavailableError("away"), ev.SubmissionLost(0, 1)),
    ],
    ids=["created", "not created", "cannot be asked"],
)
def test_of_a_creation_that_is_not_on_its_way_any_more_the_record_decides_at_once(found, event):
    job = prepared().job
    if isinstance(found, dict):
        found = {job.key(0, 1): run for run in found.values()}
    door = Door(SubmissionUnknownError("busy", key="k", over=True), found)
    assert done(job, door, lambda p: p.submit(ev.Submit(0, 1)))[0] == [event]


@pytest.mark.parametrize("there", [True, False])
def test_a_question_by_key_is_answered_by_an_event(there):
    job = prepared().job
    door = Door({job.key(2, 0): run_of(Phase.RUNNING)} if there else {})
    events, _, _ = done(job, door, lambda p: p.resolve(ev.Resolve(2, 0)))
    assert events == [ev.Submitted(2, 0, RunId("r"), Phase.RUNNING) if there else ev.SubmissionAbsent(2, 0)]
    assert door.asked == [(job.key(2, 0),)]


def test_a_question_that_cannot_be_asked_is_asked_later():
    events, _, _ = done(prepared().job, Door(EngineUnavailableError("away")), lambda p: p.resolve(ev.Resolve(0, 0)))
    assert events == [ev.SubmissionDeferred(0, 0)]


def test_once_the_job_stops_a_question_by_key_that_waits_for_its_turn_is_urgent():
    class Busy(Door):
        async def find_by_keys(self, flow_id: str, keys: Sequence[str]) -> Mapping[str, Run]:
            await self.pace.take()
            return await super().find_by_keys(flow_id, keys)

    job, door, asked_at = prepared().job, Busy({}), list[float]()
    door.pace = Pace(20)

    async def whole() -> None:
        loop = asyncio.get_running_loop()
        performer = Performer(
            job, door, Io(inline=True), lambda _: asked_at.append(loop.time()), lambda: None, lambda: loop.time() >= 10
        )
        with asking(Need.CANCEL):
            for _ in range(12):
                await door.pace.take()
        await performer.resolve(ev.Resolve(0, 0))

    run_virtually(whole())
    assert len(asked_at) == 1
    assert 10 <= asked_at[0] < 11


# ---------------------------------------------------------------- cancelling


def test_a_cancel_is_asked_until_every_run_was_taken():
    a, b = RunId("a"), RunId("b")
    door = Door(EngineUnavailableError("away"), {a: CancelReply.REQUESTED}, {b: CancelReply.CANCELLED})
    events, nudges, seconds = done(prepared().job, door, lambda p: p.cancel(ev.Cancel((a, b))))
    assert door.asked == [(a, b), (a, b), (b,)]
    assert events == [], "asked is not done: what becomes of them is read"
    assert nudges == 1
    assert 0.5 <= seconds < 5


# ---------------------------------------------------------------- reading outcomes


def closing(job: Job, monkeypatch: Any, *answers: Any, **more: Any):
    answers_left = list(answers)

    def read(*args: Any) -> Reading:
        answer = answers_left.pop(0) if len(answers_left) > 1 else answers_left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("orchestrator.reactor.perform.read_attempt", read)
    return done(job, Door(run_of()), lambda p: p.close(ev.Close(0, 0, Phase.COMPLETED)), **more)


def test_outcomes_are_read_again_while_the_storage_is_away(monkeypatch):
    away = StoreUnavailableError("away")
    events, _, seconds = closing(prepared().job, monkeypatch, away, away, OSError("stale"), ENDED)
    assert events == [ev.Closed(0, 0, ENDED)]
    assert 0.5 < seconds < 5


@pytest.mark.parametrize(
    ("error", "stopping", "least", "most"),
    [
        (StoreUnavailableError("away"), False, 600, 610),
        (StoreUnavailableError("away"), True, 30, 40),
        (StoreCorruptError("damaged"), False, 10, 16),
    ],
    ids=["away", "away while stopping", "damaged"],
)
def test_after_a_while_they_are_given_up(monkeypatch, error, stopping, least, most):
    events, _, seconds = closing(prepared().job, monkeypatch, error, stopping=stopping)
    assert events == [ev.CloseFailed(0, 0, str(error))]
    assert least <= seconds <= most


def test_a_stop_that_a_child_saw_first_is_told_before_its_end(monkeypatch):
    job = prepared().job
    job.folder.request_stop(STOP)
    reading = Reading(Counts(1), 0, 4, ended=True, reason=EndReason.STOPPED)
    events, _, _ = closing(job, monkeypatch, reading)
    assert events == [ev.StopRequested(STOP, written=True), ev.Closed(0, 0, reading)]


@pytest.mark.parametrize(
    ("phase", "outcome"),
    [
        (Phase.COMPLETED, ItemOutcome.SUCCEEDED),
        (Phase.FAILED, ItemOutcome.FAILED),
        (Phase.CRASHED, ItemOutcome.UNKNOWN),
        (Phase.CANCELLED, ItemOutcome.UNKNOWN),
        (None, ItemOutcome.UNKNOWN),
    ],
)
def test_of_a_flow_that_is_not_ours_its_state_speaks_for_its_items(phase, outcome):
    from dataclasses import replace

    from orchestrator.reactor.job import PassItems

    job = replace(prepared().job, pass_items=PassItems("list", "ids"))
    reading = read_attempt(job, 1, 0, phase)
    expected = {
        ItemOutcome.SUCCEEDED: (5, 0, 0),
        ItemOutcome.FAILED: (0, 5, 0),
        ItemOutcome.UNKNOWN: (0, 0, 5),
    }[outcome]
    assert (reading.counts.succeeded, reading.counts.failed, reading.unknown) == expected
    if outcome is ItemOutcome.FAILED:
        first = reading.counts.first_failure
        assert first is not None
        assert (first.index, first.type) == (5, "ChildRunFailed")
    assert read_attempt(job, 1, 0, Phase.COMPLETED) == reading, "what was written once stays"


# ---------------------------------------------------------------- background


def test_an_exception_nobody_expected_is_told_and_a_cancellation_is_not():
    told: list[BaseException] = []

    async def whole() -> int:
        tasks: dict[asyncio.Task[Any], None] = {}

        async def broken() -> None:
            raise ValueError("a bug")

        in_background(tasks, broken(), told.append)
        in_background(tasks, asyncio.sleep(100), told.append)
        await asyncio.sleep(0.01)
        (left,) = tasks
        left.cancel()
        await asyncio.sleep(0.01)
        return len(tasks)

    assert run_virtually(whole()) == 0
    assert [str(error) for error in told] == ["a bug"]


def test_work_on_the_folder_is_done_off_the_loop():
    async def whole() -> tuple[str, str]:
        import threading

        io = Io(threads=1)
        try:
            return await io(lambda: threading.current_thread().name), threading.current_thread().name
        finally:
            io.close()

    there, here = asyncio.run(whole())
    assert there.startswith("job-folder")
    assert there != here
