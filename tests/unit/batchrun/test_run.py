"""One attempt at a batch on a real folder, without Prefect: what runs, what is written, how it ends."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.batchrun.ending import Ending
from orchestrator.batchrun.run import arun_batch, run_batch, run_items
from orchestrator.core.model import EndReason, StopCause, StopMode, StopRecord
from orchestrator.errors import AttemptTakenError, ConfigurationError, JobConflictError
from orchestrator.flows import ItemContext
from tests.support import eventually
from tests.unit.batchrun.jobs import Door, StagedJob, chosen


@pytest.fixture
def door() -> Door:
    return Door()


def stop(mode: StopMode = StopMode.CANCEL) -> StopRecord:
    return StopRecord(mode, StopCause.TRIPPED, "too many failures", "kill switch")


def in_background(function: Any, *args: Any) -> tuple[threading.Thread, list[Any]]:
    """Start a call in a thread; its value, or what it raised, comes into the list."""
    got: list[Any] = []

    def call() -> None:
        try:
            got.append(function(*args))
        except BaseException as error:
            got.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread, got


# ---------------------------------------------------------------------- what runs


def test_every_item_runs_once_and_its_result_is_in_the_ledger(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, list(range(10)))
    ended = run_batch(job.reference(), chosen(lambda item: {"square": item * item}), door)
    assert ended == Ending("COMPLETED", None, "10 succeeded of 10 items")
    assert [record.result for record in job.folder.outcomes()] == [{"square": n * n} for n in range(10)]
    end = job.folder.read_end(0, 0)
    assert end is not None
    assert (end.reason, end.records, end.counts.succeeded) == (EndReason.COMPLETED, 10, 10)


def test_an_item_that_raises_fails_alone_with_its_error(tmp_path: Path, door: Door) -> None:
    def process(item: int) -> int:
        if item == 3:
            raise ValueError("three is bad")
        return item

    job = StagedJob(tmp_path, list(range(5)))
    ended = run_batch(job.reference(), chosen(process, item_concurrency=2), door)
    assert (ended.type, ended.name) == ("COMPLETED", "CompletedWithFailures")
    assert ended.message == "4 succeeded, 1 failed of 5 items"
    failed = [record for record in job.folder.outcomes() if record.outcome == "failed"]
    assert [(r.index, r.error_type, r.error_text) for r in failed] == [(3, "ValueError", "three is bad")]


def test_a_run_in_which_no_item_succeeded_is_failed(tmp_path: Path, door: Door) -> None:
    def process(item: int) -> None:
        raise KeyError(item)

    ended = run_batch(StagedJob(tmp_path, [1, 2]).reference(), chosen(process), door)
    assert (ended.type, ended.message) == ("FAILED", "0 succeeded, 2 failed of 2 items (no item succeeded)")


def test_the_author_chooses_what_fails_the_run(tmp_path: Path, door: Door) -> None:
    from orchestrator.batchrun.options import fail_rule

    def process(item: int) -> None:
        if item:
            raise KeyError(item)

    rule = fail_rule("failed > 0")
    ended = run_batch(StagedJob(tmp_path, [0, 1]).reference(), chosen(process, fail_run_when=rule), door)
    assert (ended.type, ended.message) == ("FAILED", "1 succeeded, 1 failed of 2 items (failed > 0)")


def test_async_items_run_side_by_side(tmp_path: Path, door: Door) -> None:
    at_once = most = 0

    async def process(item: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return item

    job = StagedJob(tmp_path, list(range(40)))
    ended = asyncio.run(arun_batch(job.reference(), chosen(process, item_concurrency=8), door))
    assert (ended.type, most) == ("COMPLETED", 8)
    assert job.outcomes() == ["succeeded"] * 40


def test_sync_items_never_pass_the_concurrency(tmp_path: Path, door: Door) -> None:
    lock, running, most = threading.Lock(), 0, 0

    def process(item: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    job = StagedJob(tmp_path, list(range(60)))
    assert run_batch(job.reference(), chosen(process, item_concurrency=6), door).type == "COMPLETED"
    assert most == 6


def test_a_second_parameter_learns_of_the_item(tmp_path: Path, door: Door) -> None:
    seen: list[ItemContext] = []

    def process(item: str, context: ItemContext, *, factor: int = 1) -> int:
        seen.append(context)
        return factor

    job = StagedJob(tmp_path, ["a", "b"])
    run_batch(job.reference(), chosen(process, {"factor": 3}), door)
    assert seen == [ItemContext("0", 0, "job-1", 0, 0), ItemContext("1", 1, "job-1", 0, 0)]
    assert [record.result for record in job.folder.outcomes()] == [3, 3]


def test_items_see_the_context_of_the_run(tmp_path: Path, door: Door) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    job = StagedJob(tmp_path, [1, 2, 3])
    run_batch(job.reference(), chosen(lambda item: variable.get(), item_concurrency=3), door)
    assert [record.result for record in job.folder.outcomes()] == ["set"] * 3


def test_a_whole_batch_goes_to_a_vectorised_function(tmp_path: Path, door: Door) -> None:
    def process(items: list[int]) -> list[Any]:
        return [item * 2 if item != 2 else ValueError("two") for item in items]

    job = StagedJob(tmp_path, [1, 2, 3])
    ended = run_batch(job.reference(), chosen(process, per="batch"), door)
    assert ended.message == "2 succeeded, 1 failed of 3 items"
    assert [record.result for record in job.folder.outcomes()] == [2, None, 6]


def test_a_vectorised_function_must_return_one_outcome_per_item(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, [1, 2, 3])
    ended = run_batch(job.reference(), chosen(lambda items: [1], per="batch"), door)
    assert ended.type == "FAILED"
    assert "returned 1 outcomes for 3 items" in str(next(job.folder.outcomes()).error_text)


# ---------------------------------------------------------------------- errors of items


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (object(), "an object is not JSON"),
        (float("nan"), "nan is not JSON"),
        ("x" * 100_000, "at most 65,536 are kept"),
    ],
)
def test_a_result_that_cannot_be_kept_fails_its_item_with_advice(
    tmp_path: Path, door: Door, result: Any, says: str
) -> None:
    job = StagedJob(tmp_path, [0, 1])
    run_batch(job.reference(), chosen(lambda item: result if item else None), door)
    good, bad = job.folder.outcomes()
    assert good.outcome == "succeeded"
    assert bad.outcome == "failed"
    assert says in str(bad.error_text)
    assert "write it to storage" in str(bad.error_text)


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), ValueError("x" * 5000)])
def test_whatever_an_item_raises_fails_that_item_alone(tmp_path: Path, door: Door, error: BaseException) -> None:
    def process(item: int) -> None:
        if item == 1:
            raise error

    job = StagedJob(tmp_path, [0, 1, 2])
    assert run_batch(job.reference(), chosen(process), door).type == "COMPLETED"
    assert job.outcomes() == ["succeeded", "failed", "succeeded"]
    assert all(len(record.error_text or "") <= 1000 for record in job.folder.outcomes())


def test_system_exit_in_an_async_item_fails_that_item_alone(tmp_path: Path, door: Door) -> None:
    async def process(item: int) -> None:
        if item == 1:
            sys.exit(3)

    job = StagedJob(tmp_path, [0, 1, 2])
    asyncio.run(arun_batch(job.reference(), chosen(process), door))
    assert job.outcomes() == ["succeeded", "failed", "succeeded"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_failed_item_is_tried_again_and_its_tries_are_counted(tmp_path: Path, door: Door, kind: str) -> None:
    tries: dict[int, int] = {}

    def process(item: int) -> int:
        tries[item] = tries.get(item, 0) + 1
        if item == 1 and tries[item] < 3:
            raise ValueError
        if item == 2:
            raise ValueError("always")
        return item

    async def aprocess(item: int) -> int:
        return process(item)

    job = StagedJob(tmp_path, [0, 1, 2])
    if kind == "sync":
        run_batch(job.reference(), chosen(process, item_retries=2), door)
    else:
        asyncio.run(arun_batch(job.reference(), chosen(aprocess, item_retries=2), door))
    assert [(r.outcome, r.tries) for r in job.folder.outcomes()] == [("succeeded", 1), ("succeeded", 3), ("failed", 3)]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_only_errors_for_which_another_try_may_help_are_tried_again(tmp_path: Path, door: Door, kind: str) -> None:
    def process(item: int) -> int:
        raise TimeoutError("slow") if item == 0 else ValueError("bad")

    async def aprocess(item: int) -> int:
        return process(item)

    options: dict[str, Any] = {"item_retries": 2, "item_retry_if": lambda error: isinstance(error, TimeoutError)}
    job = StagedJob(tmp_path, [0, 1])
    if kind == "sync":
        run_batch(job.reference(), chosen(process, **options), door)
    else:
        asyncio.run(arun_batch(job.reference(), chosen(aprocess, **options), door))
    assert [(r.error_type, r.tries) for r in job.folder.outcomes()] == [("TimeoutError", 3), ("ValueError", 1)]


def test_a_rule_for_tries_that_raises_hides_no_error(
    tmp_path: Path, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    def process(item: int) -> None:
        raise TimeoutError("slow")

    def rule(error: Exception) -> bool:
        raise KeyError("rule")

    job = StagedJob(tmp_path, [0])
    caplog.set_level(logging.WARNING, "orchestrator.batchrun")
    run_batch(job.reference(), chosen(process, item_retries=5, item_retry_if=rule), door)
    assert [(r.error_type, r.tries) for r in job.folder.outcomes()] == [("TimeoutError", 1)]
    assert any("item_retry_if raised KeyError" in record.getMessage() for record in caplog.records)


def test_twenty_failures_are_warned_of_one_by_one(tmp_path: Path, door: Door, caplog: pytest.LogCaptureFixture) -> None:
    def process(item: int) -> None:
        raise ValueError(f"bad {item}")

    caplog.set_level(logging.INFO, "orchestrator.batchrun")
    run_batch(StagedJob(tmp_path, list(range(50))).reference(), chosen(process), door)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 21
    assert warnings[0].startswith("Item 0 failed: ValueError: bad 0 (test_run.py:")
    infos = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert infos == ["Batch 1 of 1 of job job-1: 50 items", "0 succeeded, 50 failed of 50 items (no item succeeded)"]


# ---------------------------------------------------------------------- timeouts


def test_an_async_item_beyond_its_timeout_is_cancelled(tmp_path: Path, door: Door) -> None:
    async def process(item: int) -> None:
        await asyncio.sleep(60 if item == 1 else 0)

    job = StagedJob(tmp_path, [0, 1, 2])
    asyncio.run(arun_batch(job.reference(), chosen(process, item_timeout_seconds=0.1), door))
    assert [record.error_type for record in job.folder.outcomes()] == [None, "ItemTimeoutError", None]


def test_a_timeout_that_the_item_raises_itself_is_told_as_its_own(tmp_path: Path, door: Door) -> None:
    async def process(item: int) -> None:
        raise TimeoutError("the service took too long")

    job = StagedJob(tmp_path, [0])
    asyncio.run(arun_batch(job.reference(), chosen(process, item_timeout_seconds=5), door))
    assert next(job.folder.outcomes()).error_type == "TimeoutError"


def test_a_sync_item_beyond_its_timeout_is_left_behind_and_the_others_go_on(tmp_path: Path, door: Door) -> None:
    forever = threading.Event()

    def process(item: int) -> int:
        if item == 1:
            forever.wait()
        return item

    job = StagedJob(tmp_path, list(range(6)))
    ended = run_batch(job.reference(), chosen(process, item_timeout_seconds=0.2, item_concurrency=2), door)
    assert ended.message == "5 succeeded, 1 failed of 6 items"
    assert door.exits  # the process is ended in spite of the thread that hangs
    forever.set()
    eventually(lambda: not any(t.name == "batch-item" for t in threading.enumerate()), 5)
    assert [record.error_type for record in job.folder.outcomes()][1] == "ItemTimeoutError"


def test_what_comes_after_an_items_timeout_is_ignored(tmp_path: Path, door: Door) -> None:
    late, returned = threading.Event(), threading.Event()

    def process(item: int) -> int:
        if item == 0:
            late.wait(20)
            returned.set()
        elif not returned.is_set():
            if job.outcomes()[0] == "failed":
                late.set()
            returned.wait(0.05)
        return item

    job = StagedJob(tmp_path, list(range(500)))
    made = chosen(process, item_timeout_seconds=0.5, item_concurrency=2)
    ended = run_batch(job.reference(), made, door)
    assert returned.is_set()
    assert ended.message == "499 succeeded, 1 failed of 500 items"
    end = job.folder.read_end(0, 0)
    assert end is not None
    assert (end.records, door.exits) == (500, [])  # one record each, and nothing hangs at the end


def test_a_run_whose_threads_all_hang_ends_for_a_new_attempt(tmp_path: Path, door: Door) -> None:
    forever = threading.Event()

    def process(item: int) -> None:
        forever.wait()

    job = StagedJob(tmp_path, list(range(6)))
    ended = run_batch(job.reference(), chosen(process, item_timeout_seconds=0.2, item_concurrency=2), door)
    forever.set()
    assert ended.type == "CRASHED"
    assert "2 items hang beyond their timeout" in ended.message
    end = job.folder.read_end(0, 0)
    assert end is not None
    # A third item may have begun when the first of the two was left behind a moment before the other.
    assert (end.reason, end.counts.failed in (2, 3)) == (EndReason.STUCK, True)
    # Whichever hung first may have been replaced before the second was overdue.
    assert job.outcomes()[:2] == ["failed"] * 2
    assert set(job.outcomes()[2:]) <= {"failed", "unknown", "not_started"}


# ---------------------------------------------------------------------- earlier attempts, and runs that must not be


def test_a_new_attempt_runs_only_what_an_earlier_one_did_not_finish(tmp_path: Path, door: Door) -> None:
    forever = threading.Event()
    job = StagedJob(tmp_path, list(range(6)))

    def dies(item: int) -> int:
        if item == 2:
            raise ValueError("failed for good")
        if item == 4:
            forever.wait()
        return item

    first, _ = in_background(run_batch, job.reference(), chosen(dies), door)
    eventually(lambda: job.outcomes()[3] == "succeeded", 5)
    reading = job.folder.close_attempt(0, 6, 0)
    assert (reading.counts.settled, reading.unknown, reading.ended) == (4, 2, False)

    ran: list[int] = []
    began = time.monotonic()
    ended = run_batch(job.reference(1), chosen(ran.append), door)
    assert ran == [4, 5]
    assert time.monotonic() - began >= 0.6  # one look at the folder and the grace of the given-up run
    assert ended.message == "5 succeeded, 1 failed of 6 items"
    first.join(5)  # the fence of the first attempt saw that it was given up
    assert not first.is_alive()
    forever.set()
    assert [(r.index, r.attempt) for r in job.folder.outcomes()] == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]


def test_a_given_up_attempt_starts_nothing_when_it_comes_late(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, [1])
    job.folder.close_attempt(0, 1, 0)
    ran: list[int] = []
    ended = run_batch(job.reference(0), chosen(ran.append), door)
    assert ((ended.type, ended.name), ran) == (("CANCELLED", "Revoked"), [])


def test_a_batch_that_ended_is_not_run_again(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, [1])
    run_batch(job.reference(), chosen(lambda item: None), door)
    with pytest.raises(JobConflictError, match=r"this batch ended already, .*items job:job-1\?outcome=failed"):
        run_batch(job.reference(), chosen(lambda item: None), door)


def test_a_batch_of_a_job_that_is_over_is_not_run(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, [1])
    job.folder.write_report({"verdict": "cancelled"})
    with pytest.raises(JobConflictError, match="'job-1' is over"):
        run_batch(job.reference(), chosen(lambda item: None), door)


def test_two_processes_of_one_attempt_do_not_write_the_same_ledger(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, [1, 2])
    leave = threading.Event()
    _, first = in_background(run_batch, job.reference(), chosen(lambda item: leave.wait(10)), door)
    eventually(lambda: job.folder.attempts(), 5)
    with pytest.raises(AttemptTakenError):
        run_batch(job.reference(), chosen(lambda item: None), door)
    leave.set()
    eventually(lambda: first, 5)
    assert first[0].type == "COMPLETED"


def test_a_job_id_that_was_used_again_is_noticed(tmp_path: Path, door: Door) -> None:
    from dataclasses import replace

    job = StagedJob(tmp_path, [1])
    with pytest.raises(JobConflictError, match="another job has that name now"):
        run_batch(replace(job.reference(), nonce="other"), chosen(lambda item: None), door)


def test_items_that_were_altered_are_not_run(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, [1])
    job.folder.store.put(job.reference().part, b"[null,2]\n")
    ran: list[Any] = []
    ended = run_batch(job.reference(), chosen(ran.append), door)
    assert (ended.type, ended.name, ran) == ("FAILED", "Refused", [])
    assert "was changed after the job was staged" in ended.message
    reading = job.folder.close_attempt(0, 1, 0)
    assert (reading.reason, reading.not_started, reading.why) == (EndReason.REFUSED, 1, ended.message)


# ---------------------------------------------------------------------- stops


def test_a_stop_lets_running_items_finish_and_starts_no_more(tmp_path: Path, door: Door) -> None:
    started = threading.Event()

    def process(item: int) -> int:
        started.set()
        time.sleep(0.2)
        return item

    job = StagedJob(tmp_path, list(range(50)))
    thread, got = in_background(run_batch, job.reference(), chosen(process), door)
    started.wait(5)
    job.folder.request_stop(stop())
    thread.join(5)
    assert (got[0].type, got[0].name) == ("CANCELLED", "Stopped")
    assert got[0].message.endswith("not finished of 50 items: too many failures")
    end = job.folder.read_end(0, 0)
    assert end is not None
    assert (end.reason, end.in_progress) == (EndReason.STOPPED, ())
    assert 1 <= end.counts.succeeded < 10
    assert job.outcomes() == ["succeeded"] * end.counts.succeeded + ["not_started"] * (50 - end.counts.succeeded)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_hung_item_cannot_hold_a_stopped_run(tmp_path: Path, door: Door, kind: str) -> None:
    started, forever = threading.Event(), threading.Event()

    def process(item: int) -> None:
        started.set()
        forever.wait()

    async def aprocess(item: int) -> None:
        started.set()
        await asyncio.sleep(3600)

    job = StagedJob(tmp_path, list(range(5)))
    if kind == "sync":
        thread, got = in_background(run_batch, job.reference(), chosen(process), door)
    else:
        thread, got = in_background(lambda: asyncio.run(arun_batch(job.reference(), chosen(aprocess), door)))
    started.wait(5)
    asked = time.monotonic()
    job.folder.request_stop(stop())
    thread.join(10)
    assert time.monotonic() - asked < 3
    forever.set()
    assert got[0].name == "Stopped"
    assert job.outcomes() == ["unknown"] + ["not_started"] * 4
    assert bool(door.exits) is (kind == "sync")


def test_a_stop_written_before_the_run_starts_nothing(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, [1, 2])
    job.folder.request_stop(stop())
    ran: list[int] = []
    ended = run_batch(job.reference(), chosen(ran.append), door)
    assert (ended.name, ran) == ("Stopped", [])
    assert job.outcomes() == ["not_started"] * 2


def test_a_draining_job_lets_its_children_finish(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, list(range(4)))
    job.folder.request_stop(stop(StopMode.DRAIN))
    assert run_batch(job.reference(), chosen(lambda item: time.sleep(0.1)), door).type == "COMPLETED"


def test_a_parent_without_a_sign_of_life_is_given_up(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, list(range(100)), lease_seconds=0.5)
    ended = run_batch(job.reference(), chosen(lambda item: time.sleep(0.05)), door)
    assert (ended.type, ended.name) == ("CANCELLED", "LeaseLost")
    end = job.folder.read_end(0, 0)
    assert end is not None
    assert end.reason is EndReason.LEASE_LOST


def test_a_parent_that_beats_is_waited_for(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, list(range(30)), lease_seconds=0.5)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            job.beat()

    threading.Thread(target=beat, daemon=True).start()
    ended = run_batch(job.reference(), chosen(lambda item: time.sleep(0.05)), door)
    over.set()
    assert ended.type == "COMPLETED"


def test_a_job_may_ask_its_children_to_finish_without_their_parent(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, list(range(12)), lease_seconds=0.3)
    job.folder.write_lease(1, 1, "finish")
    assert run_batch(job.reference(), chosen(lambda item: time.sleep(0.05)), door).type == "COMPLETED"


def test_a_run_that_is_being_cancelled_ends_as_cancelled_though_all_is_done(tmp_path: Path, door: Door) -> None:
    """Prefect takes nothing but Cancelled from a run that is Cancelling."""
    door.cancelling = True
    job = StagedJob(tmp_path, [1])

    def process(item: int) -> None:
        job.folder.request_stop(stop())
        time.sleep(0.4)

    ended = run_batch(job.reference(), chosen(process), door)
    assert (ended.type, ended.name, ended.message) == ("CANCELLED", "Stopped", "1 succeeded of 1 item")
    end = job.folder.read_end(0, 0)
    assert end is not None
    assert end.reason is EndReason.COMPLETED


def test_a_terminated_async_run_leaves_its_last_word(tmp_path: Path, door: Door) -> None:
    job = StagedJob(tmp_path, list(range(5)))

    began = asyncio.Event()

    async def process(item: int) -> None:
        if item == 2:
            began.set()
            await asyncio.sleep(60)

    async def main() -> None:
        run = asyncio.create_task(arun_batch(job.reference(), chosen(process), door))
        await asyncio.wait_for(began.wait(), 10)
        run.cancel()
        await asyncio.wait([run])

    asyncio.run(main())
    end = job.folder.read_end(0, 0)
    assert end is not None
    assert (end.reason, end.in_progress, end.counts.succeeded) == (EndReason.TERMINATED, (2,), 2)


# ---------------------------------------------------------------------- storage


def test_a_ledger_that_cannot_be_written_ends_the_run(
    tmp_path: Path, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.errors import StoreUnavailableError
    from orchestrator.store import Ledger

    written = Ledger.record
    ran: list[int] = []

    def full(self: Ledger, outcome: Any) -> bool:
        if outcome.index >= 3:
            raise StoreUnavailableError("No space left on device")
        return written(self, outcome)

    monkeypatch.setattr(Ledger, "record", full)
    job = StagedJob(tmp_path, list(range(10)))
    ended = run_batch(job.reference(), chosen(ran.append), door)
    assert ended.type == "FAILED"
    assert "No space left on device" in ended.message
    assert ran == [0, 1, 2, 3]
    assert job.outcomes() == ["succeeded"] * 3 + ["unknown"] + ["not_started"] * 6


def test_storage_without_appends_holds_the_same_outcomes(door: Door) -> None:
    job = StagedJob("memory://batchrun-segments", list(range(2500)))
    ended = run_batch(job.reference(), chosen(lambda item: item), door)
    assert ended.type == "COMPLETED"
    assert [record.result for record in job.folder.outcomes()] == list(range(2500))


# ---------------------------------------------------------------------- news


def test_news_tells_the_counts_until_the_last(tmp_path: Path, door: Door) -> None:
    from orchestrator.batchrun import options
    from orchestrator.engine.progress import decode

    # The parent asks for no less than two seconds; here time is short.
    assert options.JobSettings.from_spec({"child": {"news_seconds": 0.1}}).news_seconds == 2.0
    job = StagedJob(tmp_path, list(range(30)), news_after_seconds=0.1, news_seconds=2.5)
    run_batch(job.reference(), chosen(lambda item: time.sleep(0.02)), door)
    told = [decode(metadata) for _, metadata in door.published]
    assert len(told) == 2
    assert told[-1] is not None
    assert (told[-1].counts.succeeded, door.published[-1][0]) == (30, 100.0)


def test_a_short_run_tells_nothing_but_its_end(tmp_path: Path, door: Door) -> None:
    run_batch(StagedJob(tmp_path, [1, 2]).reference(), chosen(lambda item: None), door)
    assert door.published == []


# ---------------------------------------------------------------------- without a job


def test_items_given_directly_return_their_outcomes(door: Door) -> None:
    def process(item: int) -> float:
        return 6 / item

    ended = run_items([1, 0, 3], chosen(process), door, result_max_bytes=1000)
    assert ended.message == "2 succeeded, 1 failed of 3 items"
    assert ended.outcomes == [
        {"index": 0, "outcome": "succeeded", "result": 6.0},
        {"index": 1, "outcome": "failed", "error": {"type": "ZeroDivisionError", "text": "division by zero"}},
        {"index": 2, "outcome": "succeeded", "result": 2.0},
    ]


def test_no_items_are_a_completed_run(door: Door) -> None:
    assert run_items([], chosen(lambda item: None), door, result_max_bytes=1000).type == "COMPLETED"


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options",
    [
        {"item_concurrency": 0},
        {"item_retries": -1},
        {"item_timeout_seconds": 0},
        {"executor": "fibres"},
        {"concurrency_limits": "service"},
        {"per": "batch", "item_concurrency": 4},
        {"item_retry_if": ValueError("no function")},
        {"executor": "processes", "item_retry_if": bool},
        {"per": "batch", "item_retry_if": bool},
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(reversed(options))):
        chosen(lambda item: None, **options)


class Odd(BaseException):
    """Neither an Exception nor a signal."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit(), Odd("odd")])
def test_what_no_exception_handler_expects_fails_its_item_alone(
    tmp_path: Path, door: Door, error: BaseException
) -> None:
    def process(value: int) -> int:
        if value == 1:
            raise error
        return value

    job = StagedJob(tmp_path / "job", [0, 1, 2])
    run_batch(job.reference(), chosen(process), door)
    assert job.outcomes() == ["succeeded", "failed", "succeeded"]


def test_an_error_that_nobody_can_print_or_bear_is_made_fit(tmp_path: Path, door: Door) -> None:
    def process(value: int) -> None:
        raise type("A" * 5000, (Exception,), {})("half a pair: \ud800")

    job = StagedJob(tmp_path / "job", [0])
    run_batch(job.reference(), chosen(process), door)
    (outcome,) = job.folder.outcomes()
    assert outcome.error_type == "A" * 100
    assert outcome.error_text == "half a pair: ?"
