"""When a child is said to have fallen silent, look by look, over a real folder in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from orchestrator.core.machine import events as ev
from orchestrator.core.model import Counts, Phase, Progress
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.errors import StoreUnavailableError
from orchestrator.flows.prepare import Prepared
from orchestrator.reactor.perform import Io
from orchestrator.reactor.silence import Silence
from tests.unit.core.play import Play
from tests.unit.reactor.jobs import prepared

PERIOD = 15.0


class Watched:
    """One running child (batch 0) and the parent that looks at it; `Io` runs inline, as the simulation does.

    Args:
        seconds: How long it is watched.
        child: Called each second with (second, this): what the child does.
        beats: Whether the child writes its sign of life every 15 s.
    """

    def __init__(self, seconds: int, child: Callable[[int, Watched], None] = lambda second, watched: None, *,
                 beats: Callable[[int], bool] = lambda second: False, sign: int | None = 1, children: int = 1,
                 job: Prepared | None = None) -> None:  # fmt: skip
        job = job or prepared(items=5 * children)
        self.folder, self.posted, self.second = job.job.folder, list[tuple[int, ev.Event]](), 0
        self.play = Play(*[5] * children, max_in_flight=children, submit_concurrency=children)
        for batch in range(children):
            self.play.submitted(batch, Phase.RUNNING)
        self.looks = 0
        self.read_at: float | None = None
        object.__setattr__(job.job, "times", type(job.job.times)(alive=PERIOD))
        self._io = Io(inline=True)
        if sign is not None:
            self.folder.write_alive(0, 0, sign)

        async def whole() -> None:
            loop = asyncio.get_running_loop()
            self.silence = Silence(job.job, self.play.state, self.io, self._post,
                                   read_at=lambda: loop.time() if self.read_at is None else self.read_at)  # type: ignore[arg-type]  # fmt: skip
            for batch in range(children):
                self.silence.hear(ev.Submitted(batch, 0, "run", Phase.RUNNING))  # type: ignore[arg-type]
            running = asyncio.ensure_future(self.silence.run())
            for self.second in range(seconds):
                if self.second % PERIOD == 0 and beats(self.second):
                    self.folder.write_alive(0, 0, 1000 + self.second)
                child(self.second, self)
                await asyncio.sleep(1)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        run_virtually(whole())

    async def io(self, function: Any, *args: Any) -> Any:
        self.looks += 1
        return await self._io(function, *args)

    def _post(self, event: ev.Event) -> None:
        self.posted.append((self.second, event))

    @property
    def told(self) -> list[int]:
        """The seconds at which a child was said to have fallen silent."""
        return [second for second, event in self.posted if isinstance(event, ev.FellSilent)]


def test_a_sign_that_stands_still_for_six_periods_is_told_once() -> None:
    watched = Watched(600)
    assert len(watched.told) == 1
    assert 89 <= watched.told[0] <= 106
    ((_, event),) = watched.posted
    assert isinstance(event, ev.FellSilent)
    assert (event.batch, event.attempt) == (0, 0)
    assert 90 <= event.seconds <= 106


def test_a_child_that_gives_signs_is_never_given_up() -> None:
    assert Watched(3600, beats=lambda second: True).told == []


def test_signs_that_come_at_half_the_promised_pace_are_enough() -> None:
    assert Watched(3600, beats=lambda second: second % 60 == 0).told == []


def test_the_time_counts_from_the_last_sign() -> None:
    (told,) = Watched(900, beats=lambda second: second <= 300).told
    assert 390 <= told <= 421


def test_progress_is_a_sign_of_life_too_and_saves_the_look() -> None:
    def progress(second: int, watched: Watched) -> None:
        if second % 20 == 0:
            watched.silence.hear(ev.Progressed(Progress(0, 0, second, Counts(1))))

    watched = Watched(600, progress)
    assert watched.told == []
    assert watched.looks == 0, "the folder is read for children alone that give no other news"


def test_time_in_which_the_folder_cannot_be_read_does_not_count() -> None:
    def away(second: int, watched: Watched) -> None:
        def fail(*_: Any) -> int:
            raise StoreUnavailableError("away")

        if second == 60:
            watched.folder.read_alive = fail  # type: ignore[method-assign]
        elif second == 900:
            del watched.folder.read_alive

    (told,) = Watched(1200, away).told
    assert 930 <= told <= 1020


def test_a_child_that_prefect_was_not_asked_about_since_is_not_given_up() -> None:
    """It may have ended long ago, and nobody could read it."""

    def unreachable(second: int, watched: Watched) -> None:
        watched.read_at = 5.0 if second < 500 else None

    (told,) = Watched(900, unreachable).told
    assert told >= 500


def test_a_child_that_left_no_sign_at_all_and_no_ledger_died_before_it_began() -> None:
    assert len(Watched(300, sign=None).told) == 1


def test_a_child_with_a_ledger_and_without_a_sign_is_of_an_older_version() -> None:
    def old(second: int, watched: Watched) -> None:
        if second == 2:
            watched.folder.store.append("b/0/a0.jsonl", b'{"format":1,"accepts":{}}\n')

    job = prepared(items=5)
    if not job.job.folder.store.appends:
        job.job.folder.store.append = lambda name, data: job.job.folder.store.put(name, data)  # type: ignore[method-assign]
    assert Watched(1200, old, sign=None, job=job).told == []


def test_what_is_no_sign_of_ours_gives_nobody_up_who_has_a_ledger() -> None:
    def hostile(second: int, watched: Watched) -> None:
        if second == 0:
            watched.folder.store.put("b/0/a0.0.jsonl", b'{"format":1,"accepts":{}}\n')
            watched.folder.store.put("b/0/a0.alive", b'{"format":1,"counter":"x"}')

    assert Watched(1200, hostile, sign=None).told == []


def test_a_thousand_quiet_children_are_looked_at_in_turns() -> None:
    most = 0

    class Counting(Watched):
        now = 0

        async def io(self, function: Any, *args: Any) -> Any:
            nonlocal most
            Counting.now += 1
            most = max(most, Counting.now)
            await asyncio.sleep(0.01)
            Counting.now -= 1
            return await super().io(function, *args)

    watched = Counting(200, children=300, sign=None)
    assert len(watched.told) == 300
    assert most == 32
