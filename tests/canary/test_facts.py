"""The facts about Prefect that the code rests on, asked of the Prefect that is installed.

A test here fails when Prefect changed, not when we did: its docstring names what rests on the fact, which is what an
upgrade has to look at. `make canary` runs them alone, against whatever version is installed.
"""

from __future__ import annotations

import inspect
import uuid
from typing import Any

import pytest
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import State, StateType
from prefect.deployments import arun_deployment
from prefect.exceptions import FlowRunWaitTimeout, ObjectNotFound
from prefect.flow_runs import wait_for_flow_run
from prefect.settings import get_current_settings

from orchestrator.core.model import Phase
from orchestrator.engine.transitions import answer

from .conftest import Perch


def _state(phase: Phase) -> State[None]:
    return State(type=StateType(phase.value))


# ---------------------------------------------------------------- states


def test_prefect_has_the_states_that_we_know():
    """core/model.py Phase, core/machine."""
    assert {state.value for state in StateType} == {phase.value for phase in Phase}


def test_waiting_states_are_names_of_scheduled_and_submitting_is_one_of_pending():
    """core/machine: only Pending counts against start_timeout_seconds; Late, AwaitingRetry... wait for capacity."""
    from prefect import states

    assert states.Late().type is StateType.SCHEDULED
    assert states.AwaitingRetry().type is StateType.SCHEDULED
    assert states.AwaitingConcurrencySlot().type is StateType.SCHEDULED
    assert states.Submitting().type is StateType.PENDING


async def test_every_transition_is_answered_as_the_table_says(perch: Perch):
    """engine/transitions.py, engine/cancelling.py, start.py: above all, that from Cancelling nothing but Cancelled is
    accepted, that Cancelled may become Running again, and that a scheduled run asked to cancel is cancelled at once."""
    wrong = []
    for now in Phase:
        for proposed in Phase:
            run = await perch.create()
            if now is Phase.CANCELLING:
                await perch.client.set_flow_run_state(run.id, _state(Phase.RUNNING), force=True)
            if now is not Phase.SCHEDULED:
                await perch.client.set_flow_run_state(run.id, _state(now), force=True)
            result = await perch.client.set_flow_run_state(run.id, _state(proposed))
            got = result.status.value, Phase(await perch.state_of(run))
            if got != answer(now, proposed):
                wrong.append(f"{now.value} -> {proposed.value}: {got}, not {answer(now, proposed)}")
    assert not wrong, "\n".join(wrong)


async def test_a_run_that_was_cancelled_before_it_ran_has_a_start_time_and_no_run_count(perch: Perch):
    """engine/parent.py run_of: `started` is read from run_count."""
    ran, never = await perch.create(), await perch.create()
    await perch.put(ran, "PENDING", "RUNNING", "CRASHED")
    await perch.put(never, "CANCELLED")
    assert (await perch.client.read_flow_run(ran.id)).run_count == 1
    read = await perch.client.read_flow_run(never.id)
    assert read.run_count == 0
    assert read.start_time is not None


def test_the_server_gives_up_on_a_run_that_stays_in_cancelling_after_five_minutes():
    """docs/operations.md; start.py exists because of it."""
    assert get_current_settings().server.services.cancellation_cleanup.cancelling_timeout_seconds == 300


# ---------------------------------------------------------------- creating


async def test_a_run_created_by_run_deployment_unlinked_has_no_parent_and_is_only_scheduled(perch: Perch):
    """engine/submitting.py: as_subflow=False, timeout=0 create and return at once."""
    run = await arun_deployment(perch.one, client=perch.client, timeout=0, as_subflow=False, flow_run_name="canary 1/1")
    assert run.parent_task_run_id is None
    assert run.state is not None
    assert run.state.type is StateType.SCHEDULED
    assert (run.deployment_id, run.name) == (perch.one, "canary 1/1")


async def test_an_idempotency_key_counts_per_flow_for_ever_and_ignores_everything_else(perch: Perch):
    """core/model.py idempotency_key; engine/submitting.py verifies what came back; flows/restore.py adopts by key."""
    key = uuid.uuid4().hex
    first = await perch.create(idempotency_key=key, parameters={"n": 1})
    await perch.put(first, "CANCELLING")
    assert await perch.state_of(first) is StateType.CANCELLED
    again = await perch.create(idempotency_key=key, parameters={"n": 2})
    sibling = await perch.create(perch.two, idempotency_key=key)
    stranger = await perch.create(perch.other, idempotency_key=key)
    assert again.id == sibling.id == first.id
    assert again.parameters == {"n": 1}
    assert sibling.deployment_id == perch.one
    assert stranger.id != first.id


async def test_what_a_schema_does_not_know_is_accepted_and_what_it_knows_is_checked(perch: Perch):
    """flows/target.py checks parameters itself: an unknown one would be found only in the child."""
    assert (await perch.post(f"/deployments/{perch.one}/create_flow_run", {"parameters": {"x": 1}})).status_code == 201
    refused = await perch.post(f"/deployments/{perch.one}/create_flow_run", {"parameters": {"n": "no number"}})
    assert refused.status_code == 409


async def test_parameters_are_templates(perch: Perch):
    """flows/request.py refuses `__prefect_kind` where items go by value: the server would interpret it."""
    hostile = [{"__prefect_kind": "jinja", "template": "{{ 7*6 }}"}, {"__prefect_kind": "json"}, "keep"]
    run = await perch.create(parameters={"batch": hostile})
    assert run.parameters["batch"] == ["42", "keep"]


async def test_parameters_of_more_than_half_a_megabyte_are_refused(perch: Perch):
    """flows/prepare.py checks sizes before anything is created."""
    assert get_current_settings().server.api.max_parameter_size == 524_288
    body = {"parameters": {"batch": "x" * 524_289}}
    assert (await perch.post(f"/deployments/{perch.one}/create_flow_run", body)).status_code == 422


async def test_a_runs_tags_join_those_of_its_deployment(perch: Perch):
    """docs: how to find a job's children; cleanup asks by tags and then verifies."""
    run = await perch.create(tags=["orchestrator", "job:canary"])
    assert set(run.tags) == {"deployed", "orchestrator", "job:canary"}
    found = await perch.client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            id=FlowRunFilterId(any_=[run.id]), tags=FlowRunFilterTags(all_=["orchestrator", "job:canary"])
        )
    )
    assert [r.id for r in found] == [run.id]


# ---------------------------------------------------------------- reading and cancelling in bulk


async def test_a_reading_takes_at_most_two_hundred_and_leaves_out_what_is_gone(perch: Perch):
    """engine/parent.py PAGE; core/machine: an id asked for and not returned is a lost attempt."""
    kept, gone = await perch.create(), await perch.create()
    await perch.client.delete_flow_run(gone.id)
    ids = [str(kept.id), str(gone.id), *(str(uuid.uuid4()) for _ in range(300))]
    body: dict[str, Any] = {"flow_runs": {"id": {"any_": ids}}, "limit": 200}
    assert [r["id"] for r in (await perch.post("/flow_runs/filter", body)).json()] == [str(kept.id)]
    assert (await perch.post("/flow_runs/filter", body | {"limit": 201})).status_code == 422


async def test_runs_are_found_by_key(perch: Perch):
    """flows/restore.py, reactor/perform.py resolve."""
    keys = [uuid.uuid4().hex for _ in range(200)]
    run = await perch.create(idempotency_key=keys[7])
    wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))
    assert [r.id for r in await perch.client.read_flow_runs(flow_run_filter=wanted)] == [run.id]


async def test_fifty_runs_are_cancelled_in_one_request_and_no_more(perch: Perch):
    """engine/cancelling.py CHUNK, and how it reads the answers."""
    scheduled, running, ended = await perch.create(), await perch.create(), await perch.create()
    await perch.put(running, "PENDING", "RUNNING")
    await perch.put(ended, "PENDING", "RUNNING", "COMPLETED")
    runs = [str(r.id) for r in (scheduled, running, ended)]
    body: dict[str, Any] = {
        "flow_runs": {"id": {"any_": runs}, "state": {"type": {"any_": ["SCHEDULED", "RUNNING"]}}},
        "state": {"type": "CANCELLING", "name": "Cancelling"},
        "limit": 50,
    }
    results = (await perch.post("/flow_runs/bulk_set_state", body)).json()["results"]
    said = {r["flow_run_id"]: (r["status"], (r.get("state") or {}).get("type")) for r in results}
    assert said == {str(scheduled.id): ("REJECT", "CANCELLED"), str(running.id): ("ACCEPT", "CANCELLING")}
    assert (await perch.post("/flow_runs/bulk_set_state", body | {"limit": 51})).status_code == 422


async def test_a_run_that_is_being_cancelled_holds_no_place_in_its_pool(perch: Perch):
    """The parent's own window holds it (G2): a pool's limit of 1 hands out the next run while one is Cancelling."""
    cancelling, running, waiting = await perch.create(), await perch.create(), await perch.create()
    await perch.put(cancelling, "PENDING", "RUNNING", "CANCELLING")

    async def handed_out() -> set[Any]:
        answers = await perch.client.get_scheduled_flow_runs_for_work_pool(perch.pool)
        return {answer.flow_run.id for answer in answers}

    assert len(await handed_out()) == 1
    await perch.put(running, "PENDING", "RUNNING")
    assert await handed_out() == set()
    await perch.put(waiting, "CANCELLED")


# ---------------------------------------------------------------- waiting


async def test_a_wait_for_a_run_that_has_ended_returns_it(perch: Perch):
    """engine/parent.py wait."""
    run = await perch.create()
    await perch.put(run, "PENDING", "RUNNING", "COMPLETED")
    assert (await wait_for_flow_run(run.id, timeout=30, client=perch.client)).id == run.id


async def test_a_wait_that_saw_no_end_says_so_by_a_timeout_and_one_for_a_run_that_is_gone_by_not_found(perch: Perch):
    """engine/parent.py wait: neither is believed, both are hints to read."""
    run = await perch.create()
    with pytest.raises(FlowRunWaitTimeout):
        await wait_for_flow_run(run.id, timeout=1, client=perch.client)
    with pytest.raises(ObjectNotFound):
        await wait_for_flow_run(uuid.uuid4(), timeout=1, client=perch.client)


def test_a_wait_still_reads_the_run_once_and_then_believes_events():
    """reactor/watch.py reads all runs in flight every few seconds because of it. When this fails, a newer Prefect may
    wait more safely: look at whether the readings can be made rarer."""
    source = inspect.getsource(wait_for_flow_run)
    assert source.count("read_flow_run(") == 2, "once before listening, once after a final event"
    assert "reconnect_on_clean_close" not in source


# ---------------------------------------------------------------- what is published, and the process's side


async def test_an_artifact_keeps_five_hundred_characters_of_a_metadata_value(perch: Perch):
    """engine/progress.py cuts counts into values of that size."""
    run = await perch.create()
    made = await perch.client.create_artifact(
        ArtifactCreate(type="progress", data=1.0, metadata_={"long": "x" * 600}, flow_run_id=run.id)
    )
    assert made.metadata_ is not None
    assert len(made.metadata_["long"]) <= 503
    await perch.client.update_artifact(made.id, ArtifactUpdate(data=2.0, metadata_={"n": "1"}))


@pytest.mark.parametrize(("key", "status"), [("job-a-1", 201), ("Job_A", 422)])
async def test_an_artifacts_key_is_made_of_small_letters_digits_and_dashes(perch: Perch, key: str, status: int):
    """reactor/page.py page_key."""
    got = (await perch.post("/artifacts/", {"key": key, "type": "markdown", "data": "x"})).status_code
    assert got == status


def test_a_process_knows_its_run_by_an_environment_variable(monkeypatch: pytest.MonkeyPatch):
    """start.py, engine/child.py, engine/context.py."""
    from prefect.runtime import flow_run

    run_id = str(uuid.uuid4())
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run_id)
    assert flow_run.get_id() == run_id


def test_a_worker_does_not_cancel_pending_runs_by_itself_unless_told():
    """docs/operations.md, doctor: with it, cancelled children of a process pool come back to life."""
    assert get_current_settings().worker.enable_cancellation is False


def test_the_client_waits_two_seconds_and_more_before_it_asks_again():
    """engine/connection.py has a quick retry of its own inside of the client's."""
    settings = get_current_settings().client
    assert settings.max_retries == 5
    from prefect.client import base

    source = inspect.getsource(base.PrefectHttpxAsyncClient._send_with_retry)
    assert "2**try_count" in source.replace(" ", "")
