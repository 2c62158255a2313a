"""Creations that are tried again stop being tried when nobody wants them any more."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import httpx
import pytest

from orchestrator.engine import virtual
from orchestrator.engine.connection import Connection
from orchestrator.engine.faults import Faults, SubmitFault
from orchestrator.engine.gateway import Submission
from orchestrator.engine.masking import Masker
from orchestrator.engine.memory import MemoryGateway
from orchestrator.engine.submitting import Submitter
from orchestrator.engine.translate import BusyError
from orchestrator.errors import EngineUnavailableError, SubmissionUnknownError

SUBMISSION = Submission("k", MemoryGateway().engine.deployments["simulated/batches"], "k", {})


class Busy(Submitter):
    """A server whose database is locked, so that every creation is answered by 503, in Prefect's words or a proxy's."""

    def __init__(self, *said_by_prefect: bool) -> None:
        super().__init__(Connection(Masker(())), 1)
        self.asked, self._said_by_prefect = 0, said_by_prefect

    async def _ask(self, submission: Submission) -> Any:
        self.asked += 1
        if self._said_by_prefect:
            raise BusyError(503, None, is_prefects=self._said_by_prefect[self.asked - 1])
        request = httpx.Request("POST", "http://127.0.0.1/api")
        raise httpx.HTTPStatusError("busy", request=request, response=httpx.Response(503, request=request))


def test_a_creation_that_met_a_busy_server_is_not_sent_again_once_the_job_stopped():
    busy = Busy()
    with pytest.raises(SubmissionUnknownError):
        virtual.run(busy.submit(SUBMISSION, lambda: busy.asked < 3))
    assert busy.asked == 3


@pytest.mark.parametrize(
    ("said_by_prefect", "over"), [((True, True, True), True), ((True, False, True), False), ((False,) * 3, False)]
)
def test_what_prefect_itself_refused_each_time_is_not_on_its_way_any_more(
    said_by_prefect: tuple[bool, ...], over: bool
) -> None:
    busy = Busy(*said_by_prefect)
    with pytest.raises(SubmissionUnknownError) as told:
        virtual.run(busy.submit(SUBMISSION, lambda: busy.asked < 3))
    assert told.value.over is over


def test_a_creation_whose_turn_comes_after_the_stop_is_never_sent():
    busy = Busy()
    with pytest.raises(EngineUnavailableError, match="none was created"):
        virtual.run(busy.submit(SUBMISSION, lambda: False))
    assert busy.asked == 0


def test_the_simulated_prefect_is_sent_nothing_either_that_is_not_wanted_any_more():
    async def story() -> None:
        faults = Faults()
        faults.next_submits(SubmitFault.BUSY, SubmitFault.BUSY)
        gateway = MemoryGateway(faults=faults)
        left = iter((True, True, False))
        with pytest.raises(EngineUnavailableError, match="none was created"):
            await gateway.submit(SUBMISSION, lambda: next(left))
        assert not list(gateway.engine.runs())

    virtual.run(story())


class Turned(Submitter):
    """A server that turns the first creations away, each with a pause to keep."""

    def __init__(self, times: int) -> None:
        super().__init__(Connection(Masker(())), 1)
        self.times, self.asked = times, list[float]()

    async def _ask(self, submission: Submission) -> Any:
        await self._connection.take_turn()
        self.asked.append(asyncio.get_running_loop().time())
        if len(self.asked) <= self.times:
            self._connection.turned_away(429, {"Retry-After": "30"})
            raise BusyError(429, 30.0)
        return await MemoryGateway().submit(submission)

    def _verify(self, run: Any, submission: Submission) -> None:
        """What comes back is the simulated engine's."""


def test_creations_that_are_turned_away_are_sent_again_as_late_as_is_asked_and_never_given_up():
    turned = Turned(40)
    assert virtual.run(turned.submit(SUBMISSION)).key == "k"
    assert len(turned.asked) == 41
    assert all(later - earlier >= 30 for earlier, later in pairwise(turned.asked))


def test_a_creation_that_waits_for_its_turn_is_given_up_soon_after_the_stop():
    turned = Turned(1)

    async def story() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(EngineUnavailableError, match="none was created"):
            await turned.submit(SUBMISSION, lambda: loop.time() < 12)
        return loop.time()

    assert 12 <= virtual.run(story()) <= 13
    assert len(turned.asked) == 1
