"""Slots of a limit among the items of one run: handed on, shared with other runs, lost, given back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from orchestrator.engine import slots
from orchestrator.engine.slots import NotWaitingError, RateLine, SlotPool
from orchestrator.errors import ConfigurationError
from tests.support import eventually


class Limits:
    """A server with one limit, as far as runs talk to it: leases in its memory, the count of slots in its database."""

    def __init__(self, limit: int) -> None:
        self.limit, self.active, self.exists = limit, 0, True
        self.leases: set[UUID] = set()
        self.asked: list[str] = []
        self.busy = 0
        self.lock = threading.Lock()

    def restart(self) -> None:
        with self.lock:
            self.leases.clear()

    @contextmanager
    def connect(self) -> Iterator[Limits]:
        yield self

    def answer(self, what: str, status: int, data: Any = None) -> httpx.Response:
        self.asked.append(what)
        headers = {"Retry-After": "0.05"} if status == 423 else {}
        answer = httpx.Response(status, json=data, headers=headers, request=httpx.Request("POST", "http://limits"))
        return answer.raise_for_status()

    def increment_concurrency_slots(self, names: list[str], slots: int, mode: Any) -> httpx.Response:
        return self._increment(names, "rate")

    def increment_concurrency_slots_with_lease(
        self, names: list[str], slots: int, mode: Any, lease_duration: float, holder: Any = None
    ) -> httpx.Response:
        return self._increment(names, "lease")

    def _increment(self, names: list[str], kind: str) -> httpx.Response:
        with self.lock:
            if self.busy:
                self.busy -= 1
                raise slots.BusyError("503")
            if self.active >= self.limit:
                return self.answer("denied", 423)
            self.active += self.exists
            limits = [{"name": name} for name in names] if self.exists else []
            if kind == "rate":
                return self.answer("taken", 200, limits)
            lease = uuid4()
            self.leases.add(lease)
            return self.answer("taken", 200, {"lease_id": str(lease), "limits": limits})

    def renew_concurrency_lease(self, lease_id: UUID, lease_duration: float) -> httpx.Response:
        with self.lock:
            return self.answer("renewed", 204 if lease_id in self.leases else 410)

    def release_concurrency_slots_with_lease(self, lease_id: UUID) -> httpx.Response:
        with self.lock:
            if lease_id in self.leases:
                self.leases.discard(lease_id)
                self.active -= self.exists
            return self.answer("released", 204)

    def release_concurrency_slots(self, names: list[str], slots: int, occupancy_seconds: float) -> httpx.Response:
        with self.lock:
            self.active -= slots
            return self.answer("released by count", 200, [])


@pytest.fixture
def limits() -> Limits:
    return Limits(2)


@pytest.fixture
def pool(limits: Limits) -> Iterator[SlotPool]:
    made = SlotPool(["service"], limits.connect)
    yield made
    made.close(5)


def test_a_slot_goes_to_the_next_item_of_the_run_without_a_request(limits: Limits, pool: SlotPool) -> None:
    first, second = pool.ask().result(5), pool.ask().result(5)
    waiting = pool.ask()
    eventually(lambda: "denied" in limits.asked, 5, "the server has no more")
    taken = limits.asked.count("taken")

    pool.give_back(first)

    assert waiting.result(0) is first
    assert limits.asked.count("taken") == taken
    pool.give_back(second)
    eventually(lambda: limits.active == 1, 5, "what nobody waits for is given back")


def test_a_slot_that_was_kept_long_enough_is_offered_to_other_runs(
    limits: Limits, pool: SlotPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "KEEP_SECONDS", 0.0)
    held = [pool.ask().result(5), pool.ask().result(5)]
    mine = pool.ask()
    other = SlotPool(["service"], limits.connect)
    theirs = other.ask()
    eventually(lambda: limits.asked.count("denied") >= 2, 5, "both wait")
    asked_before = limits.asked.count("taken")
    pool.give_back(held[0])
    eventually(lambda: limits.asked.count("taken") > asked_before, 10, "somebody got it from the server")
    pool.give_back(held[1])
    assert mine.result(10).lease in limits.leases
    assert theirs.result(10).lease in limits.leases
    assert limits.active == 2
    pool.give_back(mine.result())
    other.close(5)
    eventually(lambda: limits.active == 0, 5, "all is given back")


def test_a_slot_whose_lease_a_restart_forgot_is_given_back_by_count(limits: Limits, pool: SlotPool) -> None:
    slot = pool.ask().result(5)
    limits.restart()
    pool.give_back(slot)
    eventually(lambda: limits.active == 0, 5, "the count is right again")
    assert limits.asked[-1] == "released by count"
    assert pool.ask().result(5).lease in limits.leases


def test_a_slot_whose_lease_may_have_expired_is_not_given_back_twice(limits: Limits, pool: SlotPool) -> None:
    slot = pool.ask().result(5)
    limits.restart()
    limits.active -= 1  # the server took it back itself
    slot.renewed -= slots.LEASE_SECONDS
    pool.give_back(slot)
    eventually(lambda: limits.asked[-1] == "renewed", 5, "it asks for the lease")
    pool.close(5)
    assert limits.active == 0
    assert "released by count" not in limits.asked


def test_slots_in_use_are_renewed(limits: Limits, pool: SlotPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_RENEW_SECONDS", 0.05)
    slot = pool.ask().result(5)
    eventually(lambda: limits.asked.count("renewed") >= 3, 5, "it is renewed again and again")
    assert not slot.lost


def test_a_database_that_is_locked_is_asked_again_at_once(limits: Limits, pool: SlotPool) -> None:
    limits.busy = 3
    began = time.monotonic()
    pool.ask().result(30)
    assert time.monotonic() - began < slots._TROUBLE_SECONDS


def test_who_stops_waiting_holds_nothing(limits: Limits, pool: SlotPool) -> None:
    held = [pool.ask().result(5), pool.ask().result(5)]
    left, waiting = pool.ask(), pool.ask()
    assert left.cancel()
    pool.give_back(held[0])
    assert waiting.result(5) is held[0]


def test_nobody_waits_for_slots_after_a_stop_and_all_are_given_back_at_the_end(limits: Limits, pool: SlotPool) -> None:
    held = [pool.ask().result(5), pool.ask().result(5)]
    waiting = pool.ask()
    pool.stop_waiting()
    for future in (waiting, pool.ask()):
        with pytest.raises(NotWaitingError):
            future.result(5)
    pool.give_back(held[0])
    eventually(lambda: limits.active == 1, 5, "what ends is given back")
    pool.close(5)
    assert limits.active == 0
    pool.give_back(held[1])  # too late, and harmless


@pytest.mark.parametrize("line", [SlotPool, RateLine])
def test_a_limit_that_was_deleted_meanwhile_refuses_all_who_wait(limits: Limits, line: Callable[..., Any]) -> None:
    limits.exists = False
    made = line(["service"], limits.connect)
    with pytest.raises(ConfigurationError, match="'service' any more"):
        made.ask().result(5)
    made.close(5)


def test_a_rate_limit_is_asked_again_when_the_server_says(limits: Limits) -> None:
    line = RateLine(["starts"], limits.connect)
    waiting = [line.ask() for _ in range(3)]
    assert [future.result(5) for future in waiting[:2]] == [None, None]
    eventually(lambda: "denied" in limits.asked, 5, "the rate is reached")
    limits.active = 0
    assert waiting[2].result(5) is None
    line.close(5)
