"""Runs that really die, in processes of their own, until the item that kills them is found."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.batchrun.door import NoDoor
from orchestrator.batchrun.isolation import UNSENT_OUTCOMES, order, with_signal
from orchestrator.batchrun.run import run_batch
from orchestrator.core.model import Item, ItemOutcome, Reading
from tests.unit.batchrun.jobs import StagedJob, chosen

ITEMS = [Item(n, str(n), n) for n in range(10)]


def indices(items: Any) -> list[int]:
    return [item.index for item in items]


def test_one_death_is_its_machines_fault():
    plan = order(ITEMS, {0: None}, item_concurrency=4, appends=True)
    assert (indices(plan.killers), indices(plan.alone), indices(plan.together)) == ([], [], list(range(10)))


def test_after_two_deaths_as_many_items_go_alone_as_may_have_been_in_progress():
    plan = order(ITEMS, {0: None, 1: None}, item_concurrency=4, appends=True)
    assert (indices(plan.alone), indices(plan.together)) == ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9])


def test_where_outcomes_may_not_have_been_sent_more_items_are_suspected():
    many = [Item(n, str(n), n) for n in range(3000)]
    plan = order(many, {0: None, 1: None}, item_concurrency=4, appends=False)
    assert len(plan.alone) == 4 + UNSENT_OUTCOMES


def test_an_item_that_was_alone_when_a_run_died_is_not_run_again():
    plan = order(ITEMS, {0: None, 1: None, 2: 3}, item_concurrency=1, appends=True)
    assert indices(plan.killers) == [3]
    assert indices(plan.alone) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


# ---------------------------------------------------------------- with real deaths


def deadly(value: dict[str, Any]) -> int:
    match value.get("kills"):
        case "signal":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        case "segfault":
            ctypes.string_at(0)
        case True:
            os._exit(9)
    with Path(value["trace"]).open("a") as trace:
        trace.write(f"{value['n']}\n")
    return int(value["n"])


def _attempt(folder: str, count: int, attempt: int, concurrency: int) -> None:
    job = StagedJob.opened(folder, count)
    run_batch(job.reference(attempt), chosen(deadly, item_concurrency=concurrency), NoDoor())


def run_until_it_ends(job: StagedJob, concurrency: int, most: int = 9) -> list[Reading]:
    """What a parent does: a new process for each attempt, given up when it dies."""
    readings = []
    for attempt in range(most):
        job.beat()
        process = multiprocessing.get_context("spawn").Process(
            target=_attempt, args=(job.folder.url, job.count, attempt, concurrency)
        )
        process.start()
        process.join(60)
        readings.append(
            job.folder.close_attempt(0, job.count, attempt, f"Process exited with status code: {process.exitcode}")
        )
        if readings[-1].ended:
            return readings
    raise AssertionError(f"still dying after {most} attempts: {readings}")


@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_item_that_kills_its_run_is_failed_and_all_others_succeed(tmp_path: Path, concurrency: int):
    trace = tmp_path / "trace"
    values = [{"n": n, "kills": n == 4, "trace": str(trace)} for n in range(8)]
    job = StagedJob(tmp_path / "job", values)
    readings = run_until_it_ends(job, concurrency)
    outcomes = {record.index: record for record in job.folder.outcomes()}
    failed = [index for index, record in outcomes.items() if record.outcome is ItemOutcome.FAILED]
    assert failed == [4]
    assert outcomes[4].error_type == "RunDiedError"
    assert str(outcomes[4].error_text).endswith("Process exited with status code: 9")
    assert sum(record.outcome is ItemOutcome.SUCCEEDED for record in outcomes.values()) == 7
    assert [reading.suspect for reading in readings] == [None, None, 4, None]


@pytest.mark.parametrize(("how", "name"), [("signal", "-9 (SIGKILL)"), ("segfault", "-11 (SIGSEGV)")])
def test_the_item_that_killed_its_run_is_failed_with_the_way_it_died(tmp_path: Path, how: str, name: str):
    values = [{"n": n, "kills": n == 1 and how, "trace": str(tmp_path / "trace")} for n in range(3)]
    job = StagedJob(tmp_path / "job", values)
    assert len(run_until_it_ends(job, 1)) == 4
    records = list(job.folder.outcomes())
    assert [record.outcome.value for record in records] == ["succeeded", "failed", "succeeded"]
    said = "its run died while this item alone was in progress, as earlier runs had: Process exited with status code: "
    assert records[1].error_text == said + name


@pytest.mark.parametrize(
    "word", [b"{}", b'{"format":1,"records":0,"how":7}', b'{"format":9}', b"\xff", b"x" * (2 << 20)]
)
def test_a_way_of_dying_that_makes_no_sense_is_none(tmp_path: Path, word: bytes):
    job = StagedJob(tmp_path, [1])
    assert job.folder.how_it_died(0, 0) is None
    job.folder.store.put("b/0/a0.revoked", word)
    assert job.folder.how_it_died(0, 0) is None


@pytest.mark.parametrize("how", ["", "OOM killed", "Process exited with status code: 1", "status code: -999"])
def test_what_is_no_signal_is_left_as_it_is(how: str):
    assert with_signal(how) == how


@pytest.mark.slow
def test_two_such_items_are_found_one_after_the_other(tmp_path: Path):
    values = [{"n": n, "kills": n in (1, 2), "trace": str(tmp_path / "trace")} for n in range(4)]
    job = StagedJob(tmp_path / "job", values)
    run_until_it_ends(job, 1)
    words = job.outcomes()
    assert words == ["succeeded", "failed", "failed", "succeeded"]


@pytest.mark.slow
def test_it_can_be_switched_off(tmp_path: Path):
    values = [{"n": n, "kills": n == 0, "trace": str(tmp_path / "trace")} for n in range(2)]
    job = StagedJob(tmp_path / "job", values, isolate_crashing_items=False)
    with pytest.raises(AssertionError, match="still dying"):
        run_until_it_ends(job, 1, most=4)
    assert job.folder.died_before(0, 4) == {0: None, 1: None, 2: None, 3: None}
