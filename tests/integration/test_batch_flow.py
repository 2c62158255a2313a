"""Batch flows called directly against a real server: each kind of work, states, limits, logs, progress."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, get_run_logger, tags, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run as runtime_flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from orchestrator.engine.progress import decode
from orchestrator.flows import ItemContext, ItemsFailedError, batch_flow
from tests.support import eventually
from tests.unit.batchrun.jobs import StagedJob

pytestmark = [
    pytest.mark.usefixtures("stack"),
    # Prefect itself leaves a socket open after an async flow, an empty one included (3.8.8).
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


def ended(made: Any, **parameters: Any) -> State[Any]:
    return made(**parameters, return_state=True)


def outcomes(state: State[Any]) -> list[Any]:
    return [entry.get("result", entry.get("error")) for entry in state.data.result]


def run_id(state: State[Any]) -> UUID:
    assert state.state_details.flow_run_id is not None
    return state.state_details.flow_run_id


def task_runs(state: State[Any], count: int) -> list[Any]:
    """That many; the server makes them from events, which with Redis may come a moment after the flow's end."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[run_id(state)]))
    with get_client(sync_client=True) as client:

        def all_there() -> list[Any]:
            found = client.read_task_runs(flow_run_filter=wanted)
            return found if len(found) >= count and all(run.state and run.state.is_final() for run in found) else []

        return eventually(all_there, 60, f"{count} task runs")


# ---------------------------------------------------------------------- kinds of work


def test_a_plain_function_runs_and_its_outcomes_are_the_result() -> None:
    @batch_flow
    def inverse(item: int, *, factor: int = 1) -> float:
        return factor / item

    assert inverse(items=[1, 2], factor=4) == [
        {"index": 0, "outcome": "succeeded", "result": 4.0},
        {"index": 1, "outcome": "succeeded", "result": 2.0},
    ]
    state = ended(inverse, items=[1, 0])
    assert (state.type, state.name, state.message) == (
        "COMPLETED",
        "CompletedWithFailures",
        "1 succeeded, 1 failed of 2 items",
    )
    assert ended(inverse, items=[0]).type == "FAILED"


def test_a_failed_run_raises_with_its_counts() -> None:
    @batch_flow
    def fails(item: int) -> None:
        raise ValueError("no")

    with pytest.raises(ItemsFailedError, match="0 succeeded, 1 failed of 1 item") as raised:
        fails(items=[1])
    assert raised.value.outcomes[0]["error"] == {"type": "ValueError", "text": "no"}


async def test_an_async_function_runs_in_the_loop() -> None:
    @batch_flow(item_concurrency=4)
    async def echo(item: int) -> int:
        get_run_logger().info("item %s", item)
        await asyncio.sleep(0.01)
        return item

    assert [entry["result"] for entry in await echo(items=list(range(8)))] == list(range(8))


def test_a_task_has_a_task_run_per_item_in_a_window() -> None:
    lock, running, most = threading.Lock(), 0, 0

    @task(task_run_name="double-{item}", tags=["video"], retries=1)
    def double(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        if item == 3:
            raise ValueError("three")
        return item * 2

    state = ended(batch_flow(double, item_concurrency=3), items=list(range(8)))
    assert state.message == "7 succeeded, 1 failed of 8 items"
    assert outcomes(state)[3] == {"type": "ValueError", "text": "three"}
    assert most == 3
    runs = task_runs(state, 8)
    assert sorted(run.name for run in runs) == [f"double-{n}" for n in range(8)]
    assert all("video" in run.tags for run in runs)
    assert {run.run_count for run in runs} == {1, 2}


def test_an_async_task_runs_in_its_task_runner() -> None:
    @task
    async def double(item: int) -> int:
        await asyncio.sleep(0)
        return item * 2

    assert outcomes(ended(batch_flow(double, item_concurrency=2), items=[1, 2, 3])) == [2, 4, 6]


def test_a_group_of_tasks_is_an_item_and_its_futures_are_its_result() -> None:
    @task
    def one(item: int) -> int:
        return item + 1

    @task
    def two(item: int) -> int:
        if item == 2:
            raise RuntimeError("two")
        return item + 2

    @task
    def both(first: int, second: int) -> int:
        return first * second

    @batch_flow(item_concurrency=4, task_runner=ThreadPoolTaskRunner(max_workers=12))
    def group(item: int) -> dict[str, Any]:
        first, second = one.submit(item), two.submit(item)
        return {"one": first, "two": second, "both": both.submit(first, second), "item": item}

    state = ended(group, items=[1, 2, 3])
    first, failed, last = outcomes(state)
    assert (first, last) == ({"one": 2, "two": 3, "both": 6, "item": 1}, {"one": 4, "two": 5, "both": 20, "item": 3})
    assert failed == {"type": "RuntimeError", "text": "two"}


def test_a_group_may_return_its_last_future_alone() -> None:
    @task
    def step(value: int) -> int:
        return value + 1

    @batch_flow(item_concurrency=2)
    def chain(item: int) -> Any:
        return step.submit(step.submit(item))

    assert outcomes(ended(chain, items=[1, 10])) == [3, 12]


@pytest.mark.parametrize("returned", ["last", "mapping", "a run of tasks in a row"])
def test_a_group_whose_first_step_fails_fails_with_its_error_and_not_with_that_of_the_step_that_waited(
    returned: str,
) -> None:
    began = []

    @task
    def fetch(item: int) -> int:
        if item == 2:
            raise LookupError(f"there is no {item}")
        return item

    @task
    def load(value: int) -> int:
        began.append(value)
        return value * 10

    @batch_flow(item_concurrency=3, task_runner=ThreadPoolTaskRunner(max_workers=12))
    def chain(item: int) -> Any:
        loaded = load.submit(fetch.submit(item))
        if returned == "mapping":
            return {"loaded": loaded}
        return loaded if returned == "last" else load.submit(load.submit(loaded))

    first, failed, last = outcomes(ended(chain, items=[1, 2, 3]))
    assert failed == {"type": "LookupError", "text": "there is no 2"}
    factor = 1000 if returned == "a run of tasks in a row" else 10
    assert [first, last] == ([{"loaded": 10}, {"loaded": 30}] if returned == "mapping" else [factor, 3 * factor])
    assert 2 not in began


def test_a_flow_has_a_flow_run_per_item() -> None:
    @flow(flow_run_name="image-{item}")
    def image(item: int) -> int:
        if item == 1:
            raise ValueError("bad image")
        return item

    state = ended(batch_flow(image, name="images", item_concurrency=2), items=[0, 1, 2])
    assert outcomes(state) == [0, {"type": "ValueError", "text": "bad image"}, 2]


async def test_an_async_flow_has_a_flow_run_per_item() -> None:
    @flow
    async def image(item: int) -> int:
        await asyncio.sleep(0)
        return item

    made = batch_flow(image, name="aimages", item_concurrency=2)
    assert [entry["result"] for entry in await made(items=[0, 1])] == [0, 1]


def in_process(item: int, context: ItemContext, *, power: int = 1) -> Any:
    if item == 2:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
    if item == 3:
        time.sleep(60)
    if item == 4:
        raise ValueError("four")
    get_run_logger().info("item %s in %s", item, runtime_flow_run.name)
    return {"item": item**power, "run": runtime_flow_run.id}


def test_items_run_in_processes_and_a_process_that_dies_or_hangs_costs_one_item() -> None:
    made = batch_flow(in_process, executor="processes", item_concurrency=2, item_timeout_seconds=20)
    state = ended(made, items=[1, 2, 3, 4, 5], power=2)
    ok, died, hung, failed, last = outcomes(state)
    assert (ok["item"], last["item"], ok["run"]) == (1, 25, str(run_id(state)))
    assert died == {"type": "ProcessDied", "text": "the item's process ended (killed by SIGKILL)"}
    assert hung["type"] == "ItemTimeoutError"
    assert failed == {"type": "ValueError", "text": "four"}


# ---------------------------------------------------------------------- what a function may use


def test_logger_tags_runtime_and_limits_work_in_the_function() -> None:
    with get_client(sync_client=True) as client:
        create_limit(client, "in-function", 1)

    @batch_flow(item_concurrency=3)
    def uses(item: int) -> Any:
        get_run_logger().info("hello %s", item)
        with tags("inner"), concurrency("in-function", strict=True):
            return runtime_flow_run.id

    state = ended(uses, items=[1, 2, 3])
    assert outcomes(state) == [str(run_id(state))] * 3


def create_limit(client: Any, name: str, limit: int, decay: float = 0.0) -> None:
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    client.create_global_concurrency_limit(
        GlobalConcurrencyLimitCreate(name=name, limit=limit, slot_decay_per_second=decay)
    )


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_limit_holds_over_each_items_whole_duration(kind: str) -> None:
    name = f"service-{kind}"
    with get_client(sync_client=True) as client:
        create_limit(client, name, 2)
    lock, running, most = threading.Lock(), 0, 0

    def begin() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)

    def end() -> None:
        nonlocal running
        with lock:
            running -= 1

    def process(item: int) -> int:
        begin()
        time.sleep(0.1)
        end()
        return item

    async def aprocess(item: int) -> int:
        begin()
        await asyncio.sleep(0.1)
        end()
        return item

    if kind == "sync":
        state = ended(batch_flow(process, item_concurrency=4, concurrency_limits=[name]), items=list(range(4)))
    else:
        made = batch_flow(aprocess, item_concurrency=4, concurrency_limits=[name])
        state = asyncio.run(made(items=list(range(4)), return_state=True))
    assert (state.message, most) == ("4 succeeded of 4 items", 2)


def test_a_rate_limit_spaces_the_starts() -> None:
    with get_client(sync_client=True) as client:
        create_limit(client, "rate", 1, decay=2.0)
    starts: list[float] = []

    def process(item: int) -> None:
        starts.append(time.monotonic())

    ended(batch_flow(process, name="rated", item_concurrency=3, rate_limits=["rate"]), items=[1, 2, 3])
    assert len(starts) == 3
    assert starts[-1] - starts[0] >= 0.7


def test_a_limit_that_does_not_exist_fails_the_run_with_the_remedy() -> None:
    ran: list[int] = []
    state = ended(batch_flow(ran.append, name="limited", concurrency_limits=["nowhere"]), items=[1])
    assert state.type == "FAILED"
    assert "prefect gcl create nowhere --limit N" in str(state.message)
    assert ran == []


# ---------------------------------------------------------------------- parameters


@pytest.mark.parametrize(("parameters", "says"), [({}, "give a list of items"), ({"items": [], "batch": {}}, "")])
def test_neither_or_both_of_batch_and_items_fails_with_the_remedy(parameters: dict[str, Any], says: str) -> None:
    state = ended(batch_flow(lambda item: item, name="asked"), **parameters)
    assert state.type == "FAILED"
    assert says in str(state.message)


# ---------------------------------------------------------------------- by reference


def test_a_batch_of_a_job_ends_in_its_ledger_and_in_its_state(tmp_path: Path) -> None:
    job = StagedJob(tmp_path, list(range(5)), tags=["from-job"])

    @task
    def inverse(item: int) -> float:
        return 1 / item

    state = ended(batch_flow(inverse, item_concurrency=2), batch=job.reference())
    assert (state.name, state.message) == ("CompletedWithFailures", "4 succeeded, 1 failed of 5 items")
    assert job.outcomes() == ["failed"] + ["succeeded"] * 4
    assert all("from-job" in run.tags for run in task_runs(state, 5))


def test_a_rerun_of_what_ended_fails_and_points_to_retry(tmp_path: Path) -> None:
    job = StagedJob(tmp_path, [1])
    made = batch_flow(lambda item: item, name="again")
    assert ended(made, batch=job.reference()).type == "COMPLETED"
    state = ended(made, batch=job.reference())
    assert state.type == "FAILED"
    assert "job:job-1?outcome=failed" in str(state.message)


def test_a_stopped_run_is_cancelled_by_name(tmp_path: Path) -> None:
    from orchestrator.core.model import StopCause, StopMode, StopRecord

    job = StagedJob(tmp_path, list(range(10)))

    def process(item: int) -> None:
        job.folder.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "enough seen", "a test"))
        time.sleep(0.2)

    state = ended(batch_flow(process), batch=job.reference())
    assert (state.type, state.name) == ("CANCELLED", "Stopped")
    assert str(state.message).endswith("of 10 items: enough seen")


def test_progress_is_on_the_runs_page(tmp_path: Path) -> None:
    job = StagedJob(tmp_path, list(range(20)), news_after_seconds=0.2, news_seconds=2)

    state = ended(batch_flow(lambda item: time.sleep(0.05), name="slow"), batch=job.reference())
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id(state)]))
        )
    assert [(a.type, a.key) for a in artifacts] == [("progress", None)]
    news = decode(artifacts[0].metadata_)
    assert news is not None
    assert (news.counts.succeeded, artifacts[0].data) == (20, 100.0)


def test_the_log_has_no_words_of_the_inside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    job = StagedJob(tmp_path, list(range(3)))

    def process(item: int) -> None:
        if item:
            raise ValueError("bad")

    ended(batch_flow(process), batch=job.reference())
    ours = " ".join(r.getMessage() for r in caplog.records if "/orchestrator/" in r.pathname)
    assert "Item 1 failed: ValueError: bad" in ours
    for word in ("fence", "lease", "tally", "reactor", "gateway", "epoch"):
        assert word not in ours.lower()
