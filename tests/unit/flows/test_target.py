"""What a request points at: deployments that fit it, and how many of their runs there may be at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from prefect import flow

from orchestrator import batch_flow
from orchestrator.core.model import Batch, RunId
from orchestrator.engine.context import ParentRun
from orchestrator.engine.gateway import Capacity, Deployment
from orchestrator.engine.memory import MemoryGateway
from orchestrator.engine.parameters import check_parameters
from orchestrator.errors import ConfigurationError, DeploymentNotFoundError, SourceError, StorageError
from orchestrator.flows.request import JobSpec, make_spec
from orchestrator.flows.target import Target, check_groups, check_items, find_target
from orchestrator.store import JobFolder, StageOptions, as_source, stage
from orchestrator.store.records import JobRecord

NAME = "simulated/batches"


class Pool(MemoryGateway):
    """A memory gateway whose deployments have the capacity they are told."""

    def __init__(self, *capacities: Capacity) -> None:
        super().__init__()
        self._capacities = list(capacities)

    async def capacity(self, deployment: Deployment, work_queue_name: str | None = None) -> Capacity:
        names = sorted(self.engine.deployments)
        return self._capacities[min(names.index(deployment.name), len(self._capacities) - 1)]


def spec(**parameters: Any) -> JobSpec:
    return make_spec(**{"deployment": NAME, **parameters})


def parent(pool: str | None = "simulated", queue: str | None = "default") -> ParentRun:
    return ParentRun(RunId("r"), "brave-owl", "parent", 1, pool, "d", None, queue)


def found(gateway: MemoryGateway, asked: JobSpec, by: ParentRun | None = None, root: str = "memory://x") -> Target:
    return asyncio.run(find_target(asked, gateway, by, root))


def pool_of(limit: int | None, **more: Any) -> Capacity:
    by = None if limit is None else f"work pool 'simulated' (limit {limit})"
    return Capacity(**{"limit": limit, "limited_by": by, "pool_limit": limit, **more})


# ---------------------------------------------------------------- the window


def test_without_limits_the_window_is_the_one_asked_for():
    target = found(Pool(pool_of(None)), spec(max_in_flight=20), parent())
    assert (target.window, target.advice) == (20, ())


def test_a_limit_below_it_lowers_the_window_and_says_so():
    target = found(Pool(pool_of(3)), spec(max_in_flight=20))
    assert target.window == 3
    assert target.advice == ("at most 3 child runs at once: work pool 'simulated' (limit 3)",)


def test_a_parent_in_the_same_pool_takes_one_of_its_places():
    target = found(Pool(pool_of(3)), spec(), parent())
    assert target.window == 2
    assert "less the place of this run" in target.advice[0]


def test_a_parent_in_another_pool_takes_none():
    assert found(Pool(pool_of(3)), spec(), parent("elsewhere")).window == 3


def test_a_limit_that_is_just_enough_is_not_mentioned():
    assert found(Pool(pool_of(9)), spec(max_in_flight=8), parent()).advice == ()


def test_parent_and_children_on_one_pool_of_limit_one_are_refused_as_a_deadlock():
    with pytest.raises(ConfigurationError, match="raise the limit to 2 or more") as refused:
        found(Pool(pool_of(1)), spec(), parent())
    assert refused.value.field == "deployment"


def test_a_deployment_limit_of_one_is_no_deadlock_with_a_parent_in_the_same_pool():
    """The parent is a run of another deployment: it holds a place of the pool alone."""
    capacity = Capacity(limit=1, limited_by="deployment 'simulated/batches' (limit 1)", pool_limit=10)
    assert found(Pool(capacity), spec(), parent()).window == 1


def test_the_pool_less_the_parents_place_can_be_the_tightest_limit():
    capacity = Capacity(limit=2, limited_by="deployment 'simulated/batches' (limit 2)", pool_limit=2)
    target = found(Pool(capacity), spec(), parent())
    assert target.window == 1
    assert "work pool" in target.advice[0]


def test_a_parent_in_the_same_queue_takes_one_of_its_places_and_in_another_none():
    capacity = Capacity(limit=1, limited_by="work queue 'slow' (limit 1)", pool_limit=None, queue_limit=1)
    asked = spec(work_queue_name="slow")
    assert found(Pool(capacity), asked, parent(queue="default")).window == 1
    with pytest.raises(ConfigurationError, match="work queue 'slow'"):
        found(Pool(capacity), asked, parent(queue="slow"))


def test_a_limit_of_none_at_all_is_refused():
    with pytest.raises(ConfigurationError, match="lets nothing run"):
        found(Pool(pool_of(0)), spec())


def test_of_several_deployments_the_tightest_counts():
    gateway = Pool(pool_of(7), pool_of(4))
    gateway.engine.deploy("video/gpu")
    target = found(gateway, spec(deployment={"v": "video/gpu", "*": NAME}, group_by="kind"))
    assert target.window == 4
    assert target.capacity.limit == 4
    assert target.deployments["v"].name == "video/gpu"


# ---------------------------------------------------------------- advice


def test_a_paused_pool_one_without_worker_and_a_deployment_limit_are_named_with_the_remedy():
    gateway = Pool(pool_of(None, pool_paused=True, workers_online=0))
    known = gateway.engine.deployments
    known[NAME] = replace(known[NAME], concurrency_limit=5)
    advice = "\n".join(found(gateway, spec()).advice)
    assert "is paused" in advice
    assert "prefect worker start --pool simulated" in advice
    assert "concurrency limit of 5" in advice


# ---------------------------------------------------------------- what does not fit


def test_an_unknown_deployment_gets_near_matches():
    with pytest.raises(DeploymentNotFoundError, match="did you mean 'simulated/batches'"):
        found(MemoryGateway(), spec(deployment="simulated/batch"))


def test_a_local_folder_is_refused_where_children_run_elsewhere(tmp_path):
    gateway = MemoryGateway()
    known = gateway.engine.deployments
    known[NAME] = replace(known[NAME], pool_type="docker")
    with pytest.raises(StorageError, match="s3://"):
        found(gateway, spec(), root=str(tmp_path))
    assert found(gateway, spec(), root="s3://bucket/jobs").window == 8


def test_a_local_folder_is_accepted_where_the_jobs_own_volumes_mount_it():
    gateway = MemoryGateway()
    known = gateway.engine.deployments
    known[NAME] = replace(known[NAME], pool_type="docker")
    asked = spec(job_variables={"volumes": ["/srv/jobs:/srv/jobs"]})
    assert found(gateway, asked, root="/srv/jobs").window == 8


@pytest.mark.parametrize(
    ("of_deployment", "of_run", "fits"),
    [
        ([], {}, False),
        (["/srv/jobs:/srv/jobs"], {}, True),
        ([], {"volumes": ["/srv:/srv"]}, True),
        (["/srv/jobs:/srv/jobs"], {"volumes": []}, False),
    ],
)
def test_a_parent_in_a_container_must_see_the_folder_too(of_deployment, of_run, fits):
    """Else it would put the job into its own container, and child runs would find nothing at that path."""
    gateway = MemoryGateway()
    known = gateway.engine.deployments
    known[NAME] = replace(known[NAME], pool_type="process")
    mine = gateway.engine.deploy("mine/default")
    known["mine/default"] = replace(mine, pool="boxes", pool_type="docker", volumes=of_deployment)
    by = replace(parent("boxes"), deployment_id=mine.id, job_variables=of_run)
    if fits:
        assert found(gateway, spec(), by, root="/srv/jobs").window == 8
        return
    with pytest.raises(StorageError, match="which the parent on the docker pool 'boxes' cannot see"):
        found(gateway, spec(), by, root="/srv/jobs")
    assert found(gateway, spec(), by, root="s3://bucket/jobs").window == 8
    assert found(gateway, spec(), replace(by, deployment_id="deleted"), root="/srv/jobs").window == 8


def test_child_runs_that_get_their_items_by_value_need_no_folder(tmp_path):
    gateway = MemoryGateway()
    deployed = gateway.engine.deploy("theirs/flow", is_batch_flow=False)
    gateway.engine.deployments["theirs/flow"] = replace(
        deployed, pool_type="docker", parameter_schema={"properties": {"ids": {}}}
    )
    asked = spec(deployment="theirs/flow", pass_items_as="list:ids")
    assert found(gateway, asked, root=str(tmp_path)).window == 8


def test_a_flow_that_takes_no_batch_cannot_be_given_one():
    gateway = MemoryGateway()
    gateway.engine.deploy("theirs/flow", is_batch_flow=False)
    with pytest.raises(ConfigurationError, match="pass_items_as=list:NAME"):
        found(gateway, spec(deployment="theirs/flow"))


@pytest.mark.parametrize("way", ["list:ids", "one:ids"])
def test_items_cannot_go_into_a_parameter_that_the_flow_has_not(way):
    gateway = MemoryGateway()
    deployed = gateway.engine.deploy("theirs/flow", is_batch_flow=False)
    gateway.engine.deployments["theirs/flow"] = replace(deployed, parameter_schema={"properties": {"numbers": {}}})
    with pytest.raises(ConfigurationError, match="it takes 'numbers'") as refused:
        found(gateway, spec(deployment="theirs/flow", pass_items_as=way))
    assert refused.value.field == "pass_items_as"


def test_groups_without_a_deployment_are_named():
    asked = spec(deployment={"v": NAME}, group_by="kind")
    check_groups(asked, ["v", "v"])
    with pytest.raises(ConfigurationError, match="'a', 'b'"):
        check_groups(asked, ["v", "b", "a"])
    check_groups(spec(deployment={"*": NAME}, group_by="kind"), ["anything", None])


# ---------------------------------------------------------------- parameters, against real schemas


def process(item: Any, *, depth: int, name: str = "x", sizes: list[int] | None = None) -> Any:
    return item


def deployed(schema: Any) -> Deployment:
    return Deployment("id", "measure/default", "f", "measure", None, None, None, schema.model_dump())


BATCH = deployed(batch_flow(process).parameters)


def check(parameters: Mapping[str, Any], deployment: Deployment = BATCH, supplied: Sequence[str] = ("batch", "items")):
    check_parameters(deployment, parameters, supplied=supplied)


def test_parameters_that_fit_the_flow_are_taken():
    check({"depth": 3})
    check({"depth": 3, "name": "y", "sizes": [1, 2]})
    check({"depth": 3, "sizes": None})


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"depht": 3}, "did you mean 'depth'"),
        ({"depth": 3, "qqqq": 1}, "it takes 'depth', 'name', 'sizes'"),
        ({}, "needs a value for 'depth'"),
        ({"depth": "deep"}, "depth: "),
        ({"depth": 3, "sizes": ["a"]}, "sizes"),
        ({"depth": 3, "batch": {}}, "'batch' is filled in"),
        ({"depth": 3, "items": [1]}, "'items' is filled in"),
    ],
)
def test_parameters_that_do_not_fit_are_one_line_that_says_what_would(parameters, words):
    with pytest.raises(ConfigurationError) as refused:
        check(parameters)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.field == "parameters"


def test_a_flow_that_we_did_not_build_is_checked_as_well():
    @flow
    def theirs(numbers: list[int], depth: int = 1) -> None:
        """Theirs."""

    other = deployed(theirs.parameters)
    check({"depth": 2}, other, ["numbers"])
    with pytest.raises(ConfigurationError, match="'numbers' is filled in"):
        check({"numbers": [1]}, other, ["numbers"])
    with pytest.raises(ConfigurationError, match="depth"):
        check({"depth": "x"}, other, ["numbers"])


def test_a_deployment_without_a_schema_takes_no_parameters_of_its_own():
    check({}, replace(BATCH, parameter_schema={}))
    with pytest.raises(ConfigurationError, match="no parameters of its own"):
        check({"depth": 1}, replace(BATCH, parameter_schema={}))


# ---------------------------------------------------------------- items by value


def staged(items: list[Any], **request: Any) -> tuple[JobFolder, list[Batch], JobSpec]:
    asked = spec(deployment="theirs/flow", **request)
    folder = JobFolder(f"memory://target-{abs(hash(repr((items, request))))}")
    options = StageOptions(batch_size=asked.effective_batch_size)
    made = stage(as_source(items, storage=folder.url), folder, "n", options, on_progress=None)
    record = JobRecord("j", "n", "2025-01-01T00:00:00+00:00", {}, made.total, made.batches, made.parts, made.bytes,
                       made.hash)  # fmt: skip
    future = folder.as_if(record)
    return future, list(future.batches()), asked


def look(items: list[Any], max_bytes: int = 10_000, **request: Any) -> None:
    folder, batches, asked = staged(items, **request)
    schema = {"properties": {"n": {"type": "integer"}, "m": {"type": "integer"}}, "required": ["n"]}
    theirs = replace(BATCH, parameter_schema=schema)
    check_items(asked, Target({None: theirs}, Capacity(), 1), folder, batches, max_bytes)


def test_items_that_fit_are_passed():
    look([1, 2, 3], pass_items_as="list:n")
    look([{"n": 1}, {"n": 2}], pass_items_as="parameters")


@pytest.mark.parametrize(
    ("items", "request_", "words"),
    [
        ([1, {"__prefect_kind": "jinja"}], {"pass_items_as": "list:n"}, "__prefect_kind"),
        ([1, {"a": [{"__prefect_kind": "x"}]}], {"pass_items_as": "one:n"}, "item 1: $.a[0]"),
        ([{"n": 1}, 7], {"pass_items_as": "parameters"}, "item 1: each item must be an object"),
        ([{"n": 1}, {"n": "x"}], {"pass_items_as": "parameters"}, "item 1: n: "),
        ([{"m": 1}], {"pass_items_as": "parameters"}, "item 0: the flow of 'measure/default' needs a value for 'n'"),
        (["x" * 20_000], {"pass_items_as": "list:n"}, "lower batch_size"),
    ],
)
def test_items_that_do_not_fit_are_named(items, request_, words):
    with pytest.raises(SourceError) as refused:
        look(items, **request_)
    assert words in str(refused.value)
    assert refused.value.field == "items"
