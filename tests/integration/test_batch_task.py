"""`BatchTask` in flows on a real server: prefecto's documented behaviour, and what is better than it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import flow, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFutureList
from prefect.task_runners import ThreadPoolTaskRunner

from orchestrator.core.killswitch import FailedCount
from orchestrator.errors import ConfigurationError
from orchestrator.tasks import AnyFailedSwitch, BatchTask, CountSwitch, KillSwitch, KillSwitchError, RateSwitch
from tests.integration.job_support import MARKS
from tests.support import eventually

pytestmark = [*MARKS, pytest.mark.usefixtures("stack")]


@task
def add(a: Any, b: Any = 100) -> Any:
    """Add two numbers."""
    return a + b


@task
def add_many(a: int, *rest: int, **more: int) -> int:
    return a + sum(rest) + sum(more.values())


class Element:
    """Knows where it is counted while it lives."""

    def __init__(self, alive: weakref.WeakSet[Element]) -> None:
        alive.add(self)


@task(cache_policy=NO_CACHE)
def look_at(_: Element) -> None: ...


class Watch:
    """How many of its calls run at the same time, and which began."""

    def __init__(self) -> None:
        self.lock, self.now, self.most, self.began = threading.Lock(), 0, 0, list[int]()

    def __enter__(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.now -= 1


def run(body: Any, **options: Any) -> Any:
    """A flow around `body`, run here."""
    return flow(body, name="batch-task", **options)()


# ---------------------------------------------------------------- as prefecto documents it


@pytest.mark.parametrize(
    ("a", "b", "sums"),
    [
        ([1, 2, 3, 4, 5], [2, 3, 4, 5, 6], [3, 5, 7, 9, 11]),
        ([1, 2], [2, 3], [3, 5]),
        ([], [], []),
        (unmapped(1), [2, 3, 4, 5, 6], [3, 4, 5, 6, 7]),
    ],
)
def test_mapping_gives_one_future_per_element_in_input_order(a: Any, b: Any, sums: list[int]) -> None:
    def adding() -> list[int]:
        futures = BatchTask(add, 3).map(a, b)
        assert isinstance(futures, PrefectFutureList)
        return futures.result()

    assert run(adding) == sums


def test_a_count_switch_ends_the_mapping_as_prefectos_does() -> None:
    def adding() -> None:
        BatchTask(add, 3, CountSwitch(2)).map([1, 2, 3, 4, 5, 6, 7, 8, 9], ["x", 1, 1, "y", 1, 1, 1, 1, 1])

    with pytest.raises(KillSwitchError, match="2 failed tasks detected") as tripped:
        run(adding)
    assert isinstance(tripped.value.ks, CountSwitch)


def test_defaults_of_the_task_are_honoured_and_keywords_are_mapped() -> None:
    assert run(lambda: BatchTask(add, 2).map([1, 2, 3]).result()) == [101, 102, 103]
    assert run(lambda: BatchTask(add, 2).map(b=[1, 2, 3], a=unmapped(1)).result()) == [2, 3, 4]


def test_unequal_lengths_are_refused_with_both_lengths_and_nothing_is_run() -> None:
    ran: list[int] = []

    @task
    def note(a: int, b: int) -> None:
        ran.append(a)

    with pytest.raises(ValueError, match=r"length 5 like 'a'. 'b' is length 3"):
        run(lambda: BatchTask(note, 2).map([1, 2, 3, 4, 5], [1, 2, 3]))
    assert ran == []


def test_something_to_map_over_is_wanted() -> None:
    with pytest.raises(ValueError, match="at least one non-unmapped iterable"):
        run(lambda: BatchTask(add, 3).map(unmapped(1), unmapped(2)))
    with pytest.raises(ValueError, match="Expected 'b' to be an iterable"):
        run(lambda: BatchTask(add, 3).map([1], 2))


def test_a_line_per_batch_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="prefect.flow_runs"):
        run(lambda: BatchTask(add, 2).map([1, 2, 3, 4, 5], unmapped(1)).wait())
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Mapping add batch")]
    assert lines == [f"Mapping add batch {n} of 3." for n in (1, 2, 3)]


def test_a_switch_of_ones_own_needs_raise_if_triggered_only() -> None:
    class OddOneOut(KillSwitch):
        def raise_if_triggered(self, state: Any) -> None:
            if state.is_completed() and state.result() == 13:
                raise KillSwitchError("thirteen", self)

    with pytest.raises(KillSwitchError, match="thirteen"):
        run(lambda: BatchTask(add, 1, OddOneOut()).map([1, 12, 13], unmapped(1)))


# ---------------------------------------------------------------- and better


@pytest.mark.parametrize("barrier", [False, True])
def test_never_more_than_size_run_at_once(barrier: bool) -> None:
    watch = Watch()

    @task
    def work(n: int) -> int:
        with watch:
            time.sleep(0.05)
        return n

    assert run(lambda: BatchTask(work, 3, barrier=barrier).map(range(10)).result()) == list(range(10))
    assert watch.most == 3


def test_one_ends_and_one_begins_while_a_slow_one_runs() -> None:
    """prefecto waits for the slowest of each batch."""
    gate, began = threading.Event(), list[int]()

    @task
    def work(n: int) -> None:
        began.append(n)
        if n == 0:
            assert gate.wait(60)
        elif n == 5:
            gate.set()  # reached only if the slow first one holds nobody up

    run(lambda: BatchTask(work, 2).map(range(6)).result())
    assert sorted(began) == list(range(6))


def test_the_last_batch_is_asked_too() -> None:
    with pytest.raises(KillSwitchError):
        run(lambda: BatchTask(add, 10, AnyFailedSwitch()).map([1, 2, "x"], unmapped(1)))


def test_what_had_not_begun_does_not_begin_after_a_trip() -> None:
    ran: list[int] = []

    @task
    def work(n: int) -> None:
        ran.append(n)
        if n == 0:
            raise ValueError("the first is bad")
        time.sleep(0.3)

    def body() -> None:
        BatchTask(work, 10, CountSwitch(1)).map(range(50))

    with pytest.raises(KillSwitchError) as tripped:
        run(body, task_runner=ThreadPoolTaskRunner(max_workers=2))
    error = tripped.value
    assert 1 <= len(ran) < 10, "work that waited for a thread began all the same"
    assert len(error.futures) >= len(ran) - 1
    assert error.failed == [error.failure]
    assert error.completed == []


def test_a_trip_carries_what_there_is_by_then() -> None:
    def body() -> None:
        BatchTask(add, 1, CountSwitch(2)).map([1, "x", 3, "y", 5], unmapped(1))

    with pytest.raises(KillSwitchError) as tripped:
        run(body)
    error = tripped.value
    assert [f.result() for f in error.completed] == [2, 4]
    assert (len(error.futures), len(error.failed)) == (4, 2)
    assert error.failure is error.failed[-1]


def test_generators_are_read_as_runs_end() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(1000):
            read.append(n)
            yield n

    with pytest.raises(KillSwitchError):
        run(lambda: BatchTask(add, 2, RateSwitch(3, 0.5)).map(numbers(), unmapped("x")))
    assert len(read) < 20
    assert run(lambda: BatchTask(add, 2).map((n for n in range(5)), unmapped(1)).result()) == [1, 2, 3, 4, 5]


def test_generators_of_unequal_length_are_refused_when_it_shows() -> None:
    with pytest.raises(ValueError, match=r"length 2 like 'b'. 'a' is length 3 or more"):
        run(lambda: BatchTask(add, 1).map((n for n in range(5)), iter([1, 2])))


def test_further_keywords_are_mapped_like_others() -> None:
    assert run(lambda: BatchTask(add_many, 2).map([1, 2], x=[10, 20], y=unmapped(100)).result()) == [111, 122]


def test_results_of_a_task_are_mapped_over() -> None:
    @task
    def numbers() -> list[int]:
        return [1, 2, 3]

    assert run(lambda: BatchTask(add, 2).map(numbers.submit(), unmapped(1)).result()) == [2, 3, 4]
    assert run(lambda: BatchTask(add, 2).map(add.map([1, 2, 3], unmapped(1)), unmapped(1)).result()) == [3, 4, 5]


@pytest.mark.parametrize("switch", ["failed >= 2", FailedCount(2), 'errors["TypeError"] >= 2'])
def test_an_expression_is_a_kill_switch_too(switch: Any) -> None:
    with pytest.raises(KillSwitchError, match=">= 2") as tripped:
        run(lambda: BatchTask(add, 2, switch).map([1, "x", "y", 4, 5, 6, 7, 8], unmapped(1)))
    assert len(tripped.value.failed) == 2


async def test_an_async_flows_own_loop_goes_on_meanwhile() -> None:
    ticks = 0

    async def ticking() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    @task
    async def slow(n: int) -> int:
        await asyncio.sleep(0.1)
        return n

    @flow(name="batch-task-async")
    async def body() -> list[int]:
        ticker = asyncio.ensure_future(ticking())
        futures = await BatchTask(slow, 2, CountSwitch(1)).amap(range(6))
        ticker.cancel()
        return futures.result()

    assert await body() == list(range(6))
    assert ticks > 5


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "3", None])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="whole number >= 1"):
        BatchTask(add, size)


def test_a_switch_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="kill_switch"):
        BatchTask(add, 1, 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="says nothing of tasks"):
        BatchTask(add, 1, "crashed_batches >= 3")
    with pytest.raises(ConfigurationError, match="generator"):
        run(lambda: BatchTask(add, 1, "failed > total / 2").map(n for n in range(3)))


def test_what_a_generator_yields_is_let_go_while_the_futures_are_kept() -> None:
    alive = weakref.WeakSet[Element]()

    @flow(name="batch-task")
    def body() -> int:
        futures = BatchTask(look_at, 4).map(Element(alive) for _ in range(30))
        futures.wait()
        # Prefect keeps a run's arguments until the server has its events; nobody else keeps them.
        eventually(lambda: gc.collect() >= 0 and len(alive) <= 4, 60, "elements let go")
        return len(futures)

    assert body() == 30
