"""Turns under a budget of requests, and while Prefect wants none; in virtual time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.engine import virtual
from orchestrator.engine.pace import LEAST_BUDGET, Need, NotWantedError, Pace, asking, reading
from tests.cloud import most_within


async def take(pace: Pace, need: Need, taken: list[tuple[float, Need]], after: float = 0.0) -> None:
    await asyncio.sleep(after)
    with asking(need):
        await pace.take()
    taken.append((asyncio.get_running_loop().time(), need))


def turns(pace: Pace, asked: list[tuple[float, Need]]) -> list[tuple[float, Need]]:
    """When each of these requests (asked for after so many seconds) is sent."""
    taken: list[tuple[float, Need]] = []

    async def whole() -> None:
        await asyncio.gather(*(take(pace, need, taken, after) for after, need in asked))

    virtual.run(whole())
    return taken


MOMENTS = st.lists(st.tuples(st.floats(0, 300), st.sampled_from(Need)), min_size=1, max_size=100)


@given(budget=st.integers(LEAST_BUDGET, 400), asked=MOMENTS, crowd=st.integers(0, 200))
@settings(max_examples=40)
def test_no_minute_wherever_it_begins_sees_more_requests_than_the_budget(
    budget: int, asked: list[tuple[float, Need]], crowd: int
) -> None:
    asked = asked + [(100.0, Need.CREATE)] * crowd
    taken = turns(Pace(budget), asked)
    assert len(taken) == len(asked)
    assert most_within([at for at, _ in taken], 60.0) <= budget


def test_the_budget_is_used_up_to_a_tenth_where_there_is_enough_to_send():
    for budget in (60, 250, 600):
        taken = turns(Pace(budget), [(0.0, Need.CREATE)] * (budget + 40))
        assert most_within([at for at, _ in taken], 60.0) >= 0.88 * budget


def test_requests_are_spread_over_the_minute():
    taken = turns(Pace(120), [(0.0, Need.READ)] * 240)
    assert most_within([at for at, _ in taken], 10.0) <= 28  # a sixth of the budget, and a small burst


def test_without_a_budget_nothing_waits():
    taken = turns(Pace(), [(0.0, Need.READ)] * 1000)
    assert {at for at, _ in taken} == {0.0}


def test_cancels_are_sent_at_once_however_many_others_wait():
    asked = [(0.0, need) for need in (Need.LISTEN, Need.SHOW, Need.CREATE, Need.READ) for _ in range(50)]
    taken = turns(Pace(60), [*asked, (30.0, Need.CANCEL), (30.0, Need.CANCEL)])
    assert [at for at, need in taken if need is Need.CANCEL] == [30.0, 30.0]


def test_the_more_urgent_is_sent_first_and_equals_in_their_order():
    taken: list[tuple[str, Need]] = []

    async def whole() -> None:
        pace = Pace(60)

        async def one(name: str, need: Need) -> None:
            with asking(need):
                await pace.take()
            taken.append((name, need))

        needs = [Need.LISTEN, Need.SHOW, Need.CREATE, Need.READ]
        await asyncio.gather(*(one(f"{n}", need) for n in range(9) for need in needs))

    virtual.run(whole())
    later = taken[4:]  # the first few find tokens
    assert [need for _, need in later] == sorted(need for _, need in later)
    creations = [int(name) for name, need in taken if need is Need.CREATE]
    assert creations == sorted(creations)


def test_a_need_within_a_more_urgent_one_is_as_urgent():
    async def whole() -> list[float]:
        pace, taken = Pace(60), list[tuple[float, Need]]()
        waiting = [asyncio.ensure_future(take(pace, Need.CREATE, [])) for _ in range(30)]
        await asyncio.sleep(5)
        with asking(Need.CANCEL):
            await take(pace, Need.READ, taken)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return [at for at, _ in taken]

    assert virtual.run(whole()) == [5.0]


def test_what_is_not_wanted_any_more_gives_its_turn_up_soon_and_takes_none():
    async def whole() -> tuple[float, int]:
        pace, wanted = Pace(20), [True]
        taken: list[tuple[float, Need]] = []
        before = [asyncio.ensure_future(take(pace, Need.READ, taken)) for _ in range(20)]

        async def create() -> float:
            with asking(Need.CREATE, lambda: wanted[0]), pytest.raises(NotWantedError):
                await pace.take()
            return asyncio.get_running_loop().time()

        await asyncio.sleep(0.1)
        creation = asyncio.ensure_future(create())
        await asyncio.sleep(7)
        wanted[0] = False
        left = await creation
        await asyncio.gather(*before)
        return left, len(taken)

    left, others = virtual.run(whole())
    assert 7.1 <= left <= 8
    assert others == 20


def test_a_wait_that_is_cancelled_leaves_the_queue():
    async def whole() -> float:
        pace, taken = Pace(20), list[tuple[float, Need]]()
        await asyncio.gather(*(take(pace, Need.READ, taken) for _ in range(1)))
        first = asyncio.ensure_future(take(pace, Need.READ, taken))
        second = asyncio.ensure_future(take(pace, Need.READ, taken))
        await asyncio.sleep(1)
        first.cancel()
        await second
        return taken[-1][0]

    assert virtual.run(whole()) == pytest.approx(62 / 15, abs=0.01)  # the very next token


def test_nothing_but_cancels_is_sent_while_prefect_wants_nothing_and_not_all_at_once_afterwards():
    said: list[str] = []
    taken: list[tuple[float, Need]] = []

    async def whole() -> None:
        pace = Pace(say=said.append)
        pace.hold(7.0)
        asked = [(1.0, Need.READ), (1.0, Need.CREATE), (2.0, Need.LISTEN), (3.0, Need.CANCEL)]
        await asyncio.gather(*(take(pace, need, taken, after) for after, need in asked))
        assert "429 once" in str(pace.words())
        await asyncio.sleep(120)
        assert pace.words() is None

    virtual.run(whole())
    assert taken[0] == (3.0, Need.CANCEL)
    assert [need for _, need in taken[1:]] == [Need.READ, Need.CREATE, Need.LISTEN]
    moments = [at for at, _ in taken[1:]]
    assert moments[0] == pytest.approx(7.0, abs=0.01)
    assert moments == sorted(set(moments))
    assert len(said) == 1
    assert said[0].startswith("Prefect asks for fewer requests")


def test_a_cancel_that_was_turned_away_waits_too():
    async def whole() -> float:
        pace = Pace()
        with asking(Need.CANCEL):
            pace.hold(4.0)
            await pace.take()
        return asyncio.get_running_loop().time()

    assert virtual.run(whole()) == pytest.approx(4.0, abs=0.01)


@pytest.mark.parametrize(("said", "waited"), [(None, 5.0), (0.0, 1.0), (86_400.0, 60.0)])
def test_a_pause_that_prefect_asks_for_is_bounded(said: float | None, waited: float):
    async def whole() -> float:
        pace = Pace()
        pace.hold(said)
        await pace.take()
        return asyncio.get_running_loop().time()

    assert virtual.run(whole()) == pytest.approx(waited, abs=0.01)


def test_people_are_told_of_refusals_once_a_minute():
    said: list[str] = []

    async def whole() -> None:
        pace = Pace(say=said.append)
        for _ in range(30):
            pace.hold(1.0)
            await asyncio.sleep(5)

    virtual.run(whole())
    assert len(said) == 3
    assert "25 times" in said[-1]


def test_a_turn_that_takes_long_is_told():
    async def whole() -> list[str | None]:
        pace = Pace(20)
        waiting = [asyncio.ensure_future(take(pace, Need.CREATE, [])) for _ in range(4)]
        words = []
        for _ in range(2):
            await asyncio.sleep(4)
            words.append(pace.words())
        await asyncio.gather(*waiting)
        return words

    assert virtual.run(whole()) == [None, "requests to Prefect wait for their turn: max_requests_per_minute=20"]


def test_what_was_sent_before_the_budget_was_known_counts_against_it():
    taken: list[tuple[float, Need]] = []

    async def whole() -> None:
        pace = Pace()
        for _ in range(8):
            await take(pace, Need.READ, taken)
        pace.limit(20)
        await asyncio.gather(*(take(pace, Need.READ, taken) for _ in range(40)))

    virtual.run(whole())
    assert most_within([at for at, _ in taken], 60.0) <= 20


def test_a_cancel_does_not_pay_for_what_was_sent_before_the_budget_was_known():
    """A parent that takes a job over has asked for a lot by then; the minute has room for the cancel all the same."""
    taken: list[tuple[float, Need]] = []

    async def whole() -> None:
        pace = Pace()
        await asyncio.gather(*(take(pace, Need.READ, taken) for _ in range(12)))
        pace.limit(20)
        await asyncio.gather(*(take(pace, need, taken) for need in (Need.READ, Need.CANCEL, Need.CONFIRM)))
        await asyncio.gather(*(take(pace, Need.CANCEL, taken) for _ in range(10)))

    virtual.run(whole())
    urgent = [at for at, need in taken if need <= Need.CONFIRM]
    assert urgent[:2] == [0.0, 0.0]
    assert most_within([at for at, _ in taken], 60.0) <= 20
    assert len(taken) == 25


def test_what_was_sent_more_than_a_minute_ago_is_not_held_against_a_budget():
    taken: list[tuple[float, Need]] = []

    async def whole() -> None:
        pace = Pace()
        await asyncio.gather(*(take(pace, Need.READ, taken) for _ in range(100)))
        await asyncio.sleep(100)
        pace.limit(20)
        await take(pace, Need.READ, taken)

    virtual.run(whole())
    assert taken[-1][0] == 100.0


def test_a_reading_that_waits_when_the_job_stops_is_asked_anew_as_urgent():
    answered: list[float] = []

    async def whole() -> None:
        pace, stops = Pace(20), list[bool]()
        asyncio.get_running_loop().call_later(10, stops.append, True)

        async def ask() -> str:
            await pace.take()
            answered.append(asyncio.get_running_loop().time())
            return "an answer"

        await asyncio.gather(*(take(pace, Need.CANCEL, []) for _ in range(12)))  # a reading would wait for 50 s
        assert await reading(ask, lambda: bool(stops)) == "an answer"

    virtual.run(whole())
    assert len(answered) == 1
    assert 10.0 <= answered[0] <= 11.0


def test_one_budget_holds_for_parents_in_several_loops():
    pace, sent = Pace(600), list[float]()

    def parent() -> None:
        async def whole() -> None:
            for _ in range(12):
                await pace.take()
                sent.append(time.monotonic())
            assert pace.words() is None

        asyncio.run(whole())

    async def command() -> None:
        pace.share()
        threads = [threading.Thread(target=parent) for _ in range(3)]
        for thread in threads:
            thread.start()
        await pace.take()
        sent.append(time.monotonic())
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))

    asyncio.run(command())
    assert len(sent) == 37
    at_once = 600 // 30  # the rest of the burst is kept for cancels
    assert max(sent) - min(sent) >= (37 - at_once - 1) / pace.rate - 0.1


def test_a_turn_in_another_loop_is_given_up_there_and_a_refusal_holds_all():
    pace, ended = Pace(), list[str]()

    def parent() -> None:
        async def whole() -> None:
            pace.hold(30.0)
            with asking(Need.READ, lambda: False), pytest.raises(NotWantedError):
                await pace.take()
            ended.append("given up")
            with asking(Need.CANCEL):
                await pace.take()
            ended.append("cancelled")

        asyncio.run(whole())

    async def command() -> None:
        pace.share()
        await asyncio.to_thread(parent)
        assert "429 once" in str(pace.words())

    asyncio.run(command())
    assert ended == ["given up", "cancelled"]


def test_a_shared_budget_can_be_lowered_and_not_raised():
    pace = Pace()
    assert [(pace.lower(asked), pace.per_minute)[1] for asked in (None, 60, 100, None, 30)] == [None, 60, 60, 60, 30]


def test_what_several_jobs_sent_before_one_of_them_brought_a_budget_holds_up_nobodys_cancels():
    pace, taken = Pace(), []

    async def whole() -> None:
        for _ in range(100):
            await take(pace, Need.READ, taken)
        pace.lower(20)
        await asyncio.gather(*(take(pace, need, taken) for need in (Need.CANCEL, Need.CONFIRM, Need.READ)))
        del taken[:100]
        await asyncio.gather(*(take(pace, Need.CREATE, taken) for _ in range(40)))

    virtual.run(whole())
    assert taken[2][0] < 30, "all three within half a minute"
    assert most_within([at for at, _ in taken], 60.0) <= 20, "from then on it is kept"


def in_loops(pace: Pace, *work: Callable[[], Awaitable[None]]) -> None:
    for one in work:
        virtual.run(one())  # type: ignore[arg-type]


def test_a_second_loop_goes_on_where_the_first_one_stopped():
    """A job is prepared in one loop and run in another."""
    pace, taken = Pace(60), list[tuple[float, Need]]()

    async def prepared() -> None:
        abandoned = asyncio.ensure_future(take(pace, Need.LISTEN, taken, after=0.5))
        await asyncio.gather(*(take(pace, Need.READ, taken) for _ in range(3)))
        abandoned.cancel()

    async def run() -> None:
        await asyncio.gather(*(take(pace, Need.READ, taken) for _ in range(10)))

    in_loops(pace, prepared, run)
    assert len(taken) == 13
