"""Creations that are tried again stop being tried when nobody wants them any more."""

from __future__ import annotations

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
from orchestrator.errors import EngineUnavailableError, SubmissionUnknownError

SUBMISSION = Submission("k", MemoryGateway().engine.deployments["simulated/batches"], "k", {})


class Busy(Submitter):
    """A server whose database is locked, so that every creation is answered by 503."""

    def __init__(self) -> None:
        super().__init__(Connection(Masker(())), 1)
        self.asked = 0

    async def _ask(self, submission: Submission) -> Any:
        self.asked += 1
        request = httpx.Request("POST", "http://127.0.0.1/api")
        raise httpx.HTTPStatusError("busy", request=request, response=httpx.Response(503, request=request))


def test_a_creation_that_met_a_busy_server_is_not_sent_again_once_the_job_stopped():
    busy = Busy()
    with pytest.raises(SubmissionUnknownError):
        virtual.run(busy.submit(SUBMISSION, lambda: busy.asked < 3))
    assert busy.asked == 3


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
