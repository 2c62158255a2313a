"""Wrong parameters of the parent deployment, as they come over the API: Failed, named Refused, nothing created."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from orchestrator.flows.parent import orchestrate_flow
from orchestrator.stack import Stack
from tests.integration.job_support import MARKS, await_end, deploy_parent, deploy_work, start

pytestmark = MARKS
NOBODY = "pool-without-worker"
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
MISSING = "__missing__"

Case = tuple[dict[str, Any], str]
MISFITS: dict[str, Case] = {
    "advanced outside of its group": ({"job_id": "x"}, "belongs into `advanced`"),
    "misspelt": ({"batchsize": 3}, "did you mean 'batch_size'"),
    "misspelt advanced": ({"jobid": "x"}, "did you mean 'advanced.job_id'"),
    "unheard of": ({"zebra": 3}, "zebra: there is no such parameter"),
    "no identifier": ({"a b\n": 3}, "there is no such parameter"),
    "a keyword of Python": ({"lambda": 3}, "lambda: there is no such parameter"),
    "a method of pydantic": ({"model_dump": 3}, "model_dump: there is no such parameter"),
    "no items at all": ({"items": MISSING}, "items: is missing"),
    "no deployment at all": ({"deployment": MISSING}, "deployment: is missing"),
}
CASES: dict[str, Case] = {
    # types
    "deployment null": ({"deployment": None}, "deployment: is missing"),
    "deployment number": ({"deployment": 3}, "deployment"),
    "deployment empty": ({"deployment": ""}, "flow-name/deployment-name"),
    "deployment huge": ({"deployment": "x" * 100_000}, "deployment"),
    "deployment with control characters": ({"deployment": "a/\x07b"}, "deployment"),
    "deployment unknown": ({"deployment": "it-work/defaul"}, "did you mean 'it-work/default'"),
    "deployment mapping without group_by": ({"deployment": {"a": "b/c"}}, "group_by"),
    "deployment empty mapping": ({"deployment": {}}, "deployment"),
    "items null": ({"items": None}, "say where they come from"),
    "items empty": ({"items": {}}, "say where they come from"),
    "items a number": ({"items": 7}, "items"),
    "items of no kind": ({"items": {"kind": "zebra"}}, "items"),
    "items unhashable kind": ({"items": {"kind": ["file"]}}, "items"),
    "range of texts": ({"items": {"start": "a", "stop": "b"}}, "items.start"),
    "range with a fraction": ({"items": {"start": 0, "stop": 1.5}}, "items.stop"),
    "range backwards": ({"items": {"start": 5, "stop": 1}}, "empty"),
    "file nowhere": ({"items": {"path": "/nowhere/items.jsonl"}}, "there is no such file"),
    "file of no format": ({"items": {"path": "/etc/hostname"}}, "format"),
    "file with NUL": ({"items": {"path": "/tmp/a\x00.jsonl"}}, "items"),
    "stdin": ({"items": "-"}, "items"),
    "python not allowed": ({"items": {"callable": "os:getcwd"}}, "not allowed here"),
    "http not allowed": ({"items": {"path": "http://127.0.0.1:9/x.jsonl"}}, "not allowed here"),
    "a job that is not there": ({"items": {"job": "nothing"}}, "nothing"),
    "a job id that climbs": ({"items": {"job": "../../etc"}}, "cannot name a job"),
    "resume what is not there": ({"items": {"resume": "nothing"}}, "no job"),
    "resume what climbs": ({"items": {"resume": "../x"}}, "cannot name a job"),
    "items beside their kind": ({"items": {"path": "x.jsonl", "zebra": 1}}, "zebra"),
    "an item with a template": (
        {"items": {"items": [{"__prefect_kind": "x"}]}, "advanced": {"pass_items_as": "list:items"}}, "__prefect_kind"
    ),
    # ranges
    "batch size 0": ({"batch_size": 0}, "batch_size"),
    "batch size text": ({"batch_size": "many"}, "batch_size"),
    "window 0": ({"max_in_flight": 0}, "max_in_flight"),
    "window 1001": ({"max_in_flight": 1001}, "max_in_flight"),
    "kill switch code": ({"kill_switch": "__import__('os')"}, "kill_switch"),
    "kill switch huge": ({"kill_switch": "failed > 1 or " * 100_00 + "failed > 1"}, "kill_switch"),
    "kill switch deep": ({"kill_switch": "(" * 5000}, "kill_switch"),
    "kill switch list": ({"kill_switch": ["failed > 1"]}, "kill_switch"),
    "limits out of range": ({"kill_switch": {"max_failed_rate": 2}}, "kill_switch"),
    "limits misspelt": ({"kill_switch": {"max_faild": 2}}, "did you mean 'max_failed'"),
    "parameters a list": ({"parameters": [1]}, "parameters"),
    "parameters unknown": ({"parameters": {"zebra": 1}}, "zebra"),
    "parameters deep": ({"parameters": {"trace": DEEP}}, "trace"),
    "advanced a list": ({"advanced": [1]}, "advanced"),
    "advanced unknown": ({"advanced": {"zebra": 1}}, "zebra"),
    "job id climbs": ({"advanced": {"job_id": "../x"}}, "job_id"),
    "job id too long": ({"advanced": {"job_id": "x" * 81}}, "job_id"),
    "job id unicode": ({"advanced": {"job_id": "jöb"}}, "job_id"),
    "storage with user info": ({"advanced": {"storage": "s3://me:pw@bucket/x"}}, "user name or password"),
    "storage of no protocol": ({"advanced": {"storage": "zebra://bucket/x"}}, "storage"),
    "storage without bucket": ({"advanced": {"storage": "s3://"}}, "storage"),
    "storage in memory": ({"advanced": {"storage": "memory://x"}}, "memory"),
    "storage that is a file": ({"advanced": {"storage": "/etc/hostname"}}, "storage"),
    "times below 0": ({"advanced": {"start_timeout_seconds": -1}}, "start_timeout_seconds"),
    "tags that are none": ({"advanced": {"tags": "abc"}}, "tags"),
}  # fmt: skip


@pytest.fixture
def parent(stack: Stack) -> str:
    """The parent on a pool that nobody polls: its runs are carried out in the test's own process."""
    deploy_work()
    stack.create_pool(NOBODY)
    return deploy_parent("bad-input", pool=NOBODY)


@pytest.fixture
def created(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many flow runs and job files there are."""
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(tmp_path / "jobs"))
    return lambda: stack.request("POST", "/flow_runs/count", {}) + sum(path.is_file() for path in tmp_path.rglob("*"))


def asked(change: dict[str, Any]) -> dict[str, Any]:
    parameters = {"deployment": "it-work/default", "items": {"items": [1]}, "parameters": {"trace": "x"}, **change}
    return {k: v for k, v in parameters.items() if not isinstance(v, str) or v != MISSING}


def problem(state: Any, said: str) -> str | None:
    """What is wrong with how a run was refused."""
    message = str(state.message)
    if (state.type.value, state.name) != ("FAILED", "Refused"):
        return f"ended {state.name}: {message[:300]}"
    if said not in message or len(message) > 1500 or "Traceback" in message:
        return f"said {message[:600]!r}"
    return f"several lines: {message!r}" if "\n" in message and "^" not in message else None


async def test_a_form_filled_in_wrongly_is_refused_with_one_line_and_nothing_is_created(
    stack: Stack, parent: str, created: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    """The parent's function, many times in one flow run: what Prefect does around it is the same each time."""
    before, wrong = 0, []

    @flow
    async def all_of_them() -> None:
        nonlocal before
        before = created()
        for name, (change, said) in CASES.items():
            state = await orchestrate_flow.fn(**asked(change))
            if found := problem(state, said):
                wrong.append(f"{name}: {found}")

    await all_of_them()
    assert not wrong, "\n".join(wrong)
    assert created() == before
    assert "Traceback" not in caplog.text


async def test_parameters_that_the_form_does_not_have_are_refused_before_anything_runs(
    stack: Stack, parent: str, created: Callable[[], int], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    deployment = stack.request("GET", f"/deployments/name/{parent}")
    wrong = []
    for name, (change, said) in MISFITS.items():
        body = {"parameters": asked(change), "enforce_parameter_schema": False}  # a program may ask for that as well
        run_id = stack.request("POST", f"/deployments/{deployment['id']}/create_flow_run", body)["id"]
        before = created()
        async with get_client() as client:
            run = await client.read_flow_run(run_id)
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run_id)  # as the process of a run has it
        if found := problem(await run_flow(orchestrate_flow, flow_run=run, return_type="state"), said):  # type: ignore[misc]
            wrong.append(f"{name}: {found}")
        assert created() == before
    assert not wrong, "\n".join(wrong)
    assert "Traceback" not in caplog.text


def test_runs_by_a_worker_are_refused_in_the_same_way(stack: Stack, tmp_path: Path) -> None:
    deploy_work()
    parent = deploy_parent("bad-input-run", ORCHESTRATOR_STORAGE=str(tmp_path / "jobs"))
    cases = [MISFITS["advanced outside of its group"], MISFITS["no identifier"], CASES["a job id that climbs"]]
    runs = [start(stack, asked(change), deployment=parent) for change, _ in cases]
    for run_id, (_, said) in zip(runs, cases, strict=True):
        run = await_end(stack, run_id, 180)
        assert (run["state_type"], run["state_name"]) == ("FAILED", "Refused")
        assert said in run["state"]["message"]
        lines = stack.request("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200})
        assert not [line for line in lines if "Traceback" in line["message"]]
    assert not (tmp_path / "jobs").exists()
