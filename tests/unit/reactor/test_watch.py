"""News of children: what is posted, what is asked, and what it costs, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from orchestrator.core.machine import events as ev
from orchestrator.core.model import Counts, Phase, Progress, RunId, StopCause, StopMode, StopRecord
from orchestrator.engine.gateway import Run
from orchestrator.engine.memory import MemoryGateway
from orchestrator.engine.pace import Need, Pace, asking
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.errors import EngineUnavailableError
from orchestrator.reactor.watch import Watch
from tests.unit.core.play import Play, run_of


class Records(MemoryGateway):
    """A door behind which runs are what the test says; counts what is asked."""

    def __init__(self, runs: Mapping[RunId, Phase]) -> None:
        super().__init__()
        self.phases = dict(runs)
        self.read_at: list[float] = []
        self.progress_at: list[float] = []
        self.waits = 0
        self.news: list[Progress] = []
        self.away = False
        self.wait_raises: Exception | None = None
        self.message: str | None = None

    async def read_runs(self, ids: Sequence[RunId]) -> Mapping[RunId, Run]:
        self.read_at.append(asyncio.get_running_loop().time())
        if self.away:
            raise EngineUnavailableError("away")
        return {id_: self._run(id_) for id_ in ids if id_ in self.phases}

    def _run(self, id_: RunId) -> Run:
        phase = self.phases[id_]
        return Run(id_, "a run", None, None, phase, phase.value.title(), message=self.message)

    async def read_progress(self, ids: Sequence[RunId]) -> Sequence[Progress]:
        self.progress_at.append(asyncio.get_running_loop().time())
        return [news for news in self.news if run_of(news.batch) in ids]

    async def wait(self, run_id: RunId, timeout_seconds: float) -> Run | None:
        self.waits += 1
        if self.wait_raises is not None:
            raise self.wait_raises
        while not self.phases[run_id].is_terminal:
            await asyncio.sleep(0.1)
        return self._run(run_id)


def watched(gateway: Records, play: Play, seconds: float, *, max_waits: int = 0, poll: float = 3.0,
            meanwhile: Callable[[Watch], None] | None = None, own: RunId | None = None) -> list[ev.Event]:  # fmt: skip
    """What is posted within so many seconds; each event is played at once, as the reactor would."""
    posted: list[ev.Event] = []

    def post(event: ev.Event) -> None:
        posted.append(event)
        play.play(event)

    async def whole() -> None:
        watch = Watch(play.state, gateway, post, poll_seconds=poll, max_waits=max_waits, own=own, cancelled=cancelled)
        for batch in play.state.batches:
            if batch.run is not None:
                watch.listen(batch.index, batch.attempt, batch.run)
        running = asyncio.ensure_future(watch.run())
        if meanwhile is not None:
            asyncio.get_running_loop().call_later(seconds / 2, meanwhile, watch)
        await asyncio.sleep(seconds)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await watch.close()

    run_virtually(whole())
    return posted


def cancelled(parent: str) -> ev.Event:
    return ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.PARENT_CANCELLED, f"{parent} was cancelled", parent))


OWN = RunId("own")


def test_the_parents_own_cancellation_is_read_where_nobody_is_left_to_tell_it_and_told_once():
    play, gateway = flying(2, Phase.RUNNING)
    gateway.phases[OWN] = Phase.RUNNING

    def cancel(_: Watch) -> None:
        gateway.phases[OWN] = Phase.CANCELLING

    posted = watched(gateway, play, 60, own=OWN, meanwhile=cancel)
    told = [event for event in posted if isinstance(event, ev.StopRequested)]
    assert [event.record.reason for event in told] == ["a run was cancelled"]


def test_whoever_finishes_a_job_for_a_parent_that_was_cancelled_is_not_cancelled_itself():
    play, gateway = flying(1, Phase.RUNNING)
    gateway.phases[OWN] = Phase.CANCELLED
    assert not any(isinstance(event, ev.StopRequested) for event in watched(gateway, play, 60, own=OWN))


def test_the_parents_own_run_costs_no_request_of_its_own():
    play, gateway = flying(3, Phase.RUNNING)
    watched(gateway, play, 60)
    alone = len(gateway.read_at)
    play, gateway = flying(3, Phase.RUNNING)
    gateway.phases[OWN] = Phase.RUNNING
    watched(gateway, play, 60, own=OWN)
    assert len(gateway.read_at) == alone


def flying(n: int, phase: Phase = Phase.SCHEDULED) -> tuple[Play, Records]:
    play = Play(*[5] * n, max_in_flight=n, submit_concurrency=n)
    for batch in range(n):
        play.submitted(batch, phase)
    return play, Records({run_of(batch): phase for batch in range(n)})


class Busy(Records):
    """What is read waits for its turn, and after the first reading turns are rare."""

    def __init__(self, runs: Mapping[RunId, Phase]) -> None:
        super().__init__(runs)
        self.pace = Pace(20)

    async def read_runs(self, ids: Sequence[RunId]) -> Mapping[RunId, Run]:
        await self.pace.take()
        found = await super().read_runs(ids)
        if len(self.read_at) == 1:
            for _ in range(15):
                with asking(Need.CANCEL):
                    await self.pace.take()
        return found


def test_a_reading_that_waits_for_its_turn_when_a_stop_comes_confirms_the_stop_at_once():
    play, gateway = flying(2, Phase.RUNNING)[0], Busy({run_of(0): Phase.RUNNING, run_of(1): Phase.RUNNING})

    def stop(_: Watch) -> None:
        play.play(ev.StopRequested(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "enough", "a test")))

    watched(gateway, play, 120, meanwhile=stop)
    assert len(gateway.read_at) >= 2, "it waited, and was not asked at all"
    assert gateway.read_at[0] < 60 <= gateway.read_at[1] < 62


def test_what_is_known_already_is_not_posted_again():
    play, gateway = flying(3)
    posted = watched(gateway, play, 60)
    assert len(posted) == 3, "the name of their state, once each"
    assert all(isinstance(event, ev.RunSeen) for event in posted)


def test_how_a_run_died_is_told_in_one_sentence_and_of_crashed_runs_alone():
    play, gateway = flying(2, Phase.RUNNING)
    gateway.message = "Process exited with status code: -9. Process exited due to a SIGKILL signal. Typically caused by"
    gateway.phases = {run_of(0): Phase.CRASHED, run_of(1): Phase.FAILED}
    posted = [event for event in watched(gateway, play, 10) if isinstance(event, ev.RunSeen)]
    assert [(event.batch, event.message) for event in posted] == [(0, "Process exited with status code: -9"), (1, "")]
    closes = [command for command in play.said if isinstance(command, ev.Close)]
    assert [command.how for command in closes] == ["Process exited with status code: -9", ""]


def test_a_run_that_is_not_returned_twice_in_a_row_is_gone():
    play, gateway = flying(2)
    del gateway.phases[run_of(1)]
    posted = watched(gateway, play, 10)
    assert [event for event in posted if isinstance(event, ev.RunVanished)] == [ev.RunVanished(1, 0)]


def test_a_run_that_is_missed_once_is_not_gone():
    """A replica may lag behind the server that created it."""
    play, gateway = flying(1)
    whole = gateway.phases.copy()
    gateway.phases.clear()
    posted = watched(gateway, play, 3.2, poll=3.0, meanwhile=lambda _: None)
    gateway.phases.update(whole)
    assert not any(isinstance(event, ev.RunVanished) for event in posted)


def test_two_readings_at_the_same_moment_find_a_run_missing_once():
    """A reading that waits for its turn is asked anew when a stop comes."""
    play, gateway = flying(1)
    gateway.phases.clear()
    posted: list[ev.Event] = []

    async def whole() -> int:
        watch = Watch(play.state, gateway, posted.append, poll_seconds=3.0, max_waits=0)
        await watch.read_once()
        await watch.read_once()
        at_once = len(posted)
        await asyncio.sleep(0.5)
        await watch.read_once()
        return at_once

    assert run_virtually(whole()) == 0
    assert posted == [ev.RunVanished(0, 0)]


def test_progress_is_asked_of_runs_that_run_and_posted_once():
    play, gateway = flying(2, Phase.RUNNING)
    gateway.news = [Progress(0, 0, 1, Counts(2)), Progress(0, 0, 2, Counts(3)), Progress(1, 7, 1, Counts(1)),
                    Progress(99, 0, 1, Counts(1))]  # fmt: skip
    posted = watched(gateway, play, 20)
    told = [event.progress for event in posted if isinstance(event, ev.Progressed)]
    assert [(news.batch, news.sequence) for news in told] == [(0, 1), (0, 2)]


def test_an_outage_is_known_while_it_lasts_and_ends_no_watch():
    play, gateway = flying(1)
    gateway.away = True
    seen: list[float | None] = []

    def back(watch: Watch) -> None:
        seen.append(watch.unreachable_since)
        gateway.away = False
        gateway.phases[run_of(0)] = Phase.RUNNING

    posted = watched(gateway, play, 60, meanwhile=back)
    assert seen[0] is not None
    assert any(isinstance(event, ev.RunSeen) and event.phase is Phase.RUNNING for event in posted)


def test_nothing_is_asked_while_nothing_is_in_flight():
    play, gateway = Play(5, started=False), Records({})
    assert watched(gateway, play, 60) == []
    assert gateway.read_at == []


def test_after_five_quiet_minutes_records_are_read_half_as_often():
    play, gateway = flying(2)
    watched(gateway, play, 1200, poll=3.0)
    early = [at for at in gateway.read_at if at < 300]
    late = [at for at in gateway.read_at if 400 <= at < 700]
    assert 95 <= len(early) <= 101
    assert 47 <= len(late) <= 51


@pytest.mark.parametrize("many", [4, 100, 400, 1000])
def test_readings_of_very_many_runs_keep_within_the_requests_that_a_job_may_make_besides(many: int):
    play, gateway = flying(many, Phase.RUNNING)
    watched(gateway, play, 240)
    runs, progress = len(gateway.read_at) / 4, len(gateway.progress_at) / 4  # a minute
    assert runs * -(-many // 200) + progress * -(-many // 100) <= 45
    assert runs >= 5
    assert progress == runs or many > 60, "of few runs the progress is read each time"
    assert progress >= min(runs, 60 / (many / 10)), "as often as a child run gives news, at least"


def test_an_end_that_was_heard_is_posted_at_once():
    play, gateway = flying(1, Phase.RUNNING)

    def ends(watch: Watch) -> None:
        gateway.phases[run_of(0)] = Phase.COMPLETED

    posted = watched(gateway, play, 10, max_waits=1, poll=1000, meanwhile=ends)
    assert any(isinstance(event, ev.RunSeen) and event.phase is Phase.COMPLETED for event in posted)


def test_no_more_children_are_listened_to_than_allowed_and_an_end_makes_room_for_another():
    play, gateway = flying(6, Phase.RUNNING)

    def ends(watch: Watch) -> None:
        assert len(watch._waits) == 2
        watch.forget(0)
        assert len(watch._waits) == 2

    watched(gateway, play, 10, max_waits=2, meanwhile=ends)
    assert gateway.waits == 3


@pytest.mark.parametrize("error", [EngineUnavailableError("refused"), ValueError("what a library raises")])
def test_a_wait_that_raises_is_begun_again_later(error):
    play, gateway = flying(1, Phase.RUNNING)
    gateway.wait_raises = error
    watched(gateway, play, 60, max_waits=1)
    assert gateway.waits >= 4


def test_waits_that_are_refused_for_an_hour_cost_few_requests():
    """At most 60 requests per minute and job: reading every 3 s, runs and progress, leaves 20 for everything else."""
    play, gateway = flying(50, Phase.RUNNING)
    gateway.wait_raises = EngineUnavailableError("websockets are refused")
    watched(gateway, play, 3600, max_waits=50, poll=3.0)
    assert len(gateway.read_at) <= 60 * 22
    per_minute: Any = gateway.waits / 60
    assert per_minute < 20


def test_a_watch_that_is_told_of_news_and_to_end_at_the_same_time_ends():
    """Up to Python 3.11, `asyncio.wait_for` loses such a cancel; the job's last line then waited for ever."""

    async def whole(steps: int) -> bool:
        play = Play(3)
        watch = Watch(play.state, Records({}), lambda event: None, poll_seconds=3.0, max_waits=0)
        running = asyncio.ensure_future(watch.run())
        await asyncio.sleep(1)
        watch.nudge()
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        done, _ = await asyncio.wait({running}, timeout=60)
        running.cancel()
        return bool(done)

    assert all(run_virtually(whole(steps)) for steps in range(5))
