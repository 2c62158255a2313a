"""The page of the job whose items are run again says which job runs them, and costs that one nothing."""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.engine.memory import MemoryGateway
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.reactor.links import tell_first
from tests.unit.reactor.jobs import prepared

FIRST = str(uuid.uuid4())
LOG = logging.getLogger("test")


def told(
    first: tuple[str, str | None] | None, url: str | None = None, pages: dict[Any, str] | None = None
) -> dict[Any, str]:
    """The pages after a job over that one's items told it."""

    staged = prepared().job

    async def whole() -> dict[Any, str]:
        gateway = MemoryGateway()
        gateway.engine.pages.update(pages or {})
        job = replace(staged, first=first, url=url)
        for _ in range(2):  # a parent that is started again
            await tell_first(job, gateway, LOG)
        return gateway.engine.pages

    return run_virtually(whole())


def test_its_page_links_to_the_job_that_runs_its_items_once():
    pages = told(
        ("First.Job", f"http://ui/runs/flow-run/{FIRST}"),
        "http://ui/runs/flow-run/x",
        {(FIRST, "job-first-job"): "# 3 failed"},
    )
    (page,) = pages.values()
    assert page.startswith("# 3 failed\n\nWhat it left is run again by job [")
    assert page.count("http://ui/runs/flow-run/x") == 1


@pytest.mark.parametrize("first", [None, ("a", None), ("a", "http://ui/"), ("a", f"http://ui/{FIRST}")])
def test_a_job_without_a_page_is_told_nothing(first: tuple[str, str | None] | None):
    assert told(first) == {}


def test_a_page_that_cannot_be_reached_is_no_trouble(monkeypatch: pytest.MonkeyPatch):
    async def away(*args: Any) -> None:
        raise OSError("away")

    monkeypatch.setattr(MemoryGateway, "add_to_page", away)
    assert told(("a", f"http://ui/{FIRST}")) == {}
