"""Fixtures for tests with real containers (`make containers`): an engine, this checkout's image, a stack on both pools.

* `docker_engine`: the engine that answers; skipped without one, failed where `ORCHESTRATOR_REQUIRE_DOCKER=1` wants one.
  What carries the session's label is removed at the end.
* `flow_image`: the tag of this checkout's image, built when it is missing or older than what it is made from.
* `container_stack`: a stack with a process pool (`test-pool`) and a docker pool (`docker`), a worker each. Its
  containers see the session's temporary folder and this repository's tests at their own paths, and run as the user of
  the tests.
* `stack`: the same, and this process is its client while the test runs.
* `job`: a job named after the test, in a folder that both sides see.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator

import pytest

from orchestrator.stack import DockerPool, Stack
from tests.containers.engine import BUILD_SECONDS, ROOT, Engine, build, find_engine
from tests.containers.jobs import ContainerJob, deploy_in_containers
from tests.integration import job_flows
from tests.prefect_stack import POOL


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if "/tests/containers/" in str(item.path)]
    for number, item in enumerate(ours):
        item.add_marker(pytest.mark.containers)
        # The first of them may have to build the image.
        item.add_marker(pytest.mark.timeout(600 + (BUILD_SECONDS if number == 0 else 0)))


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Engine]:
    engine = find_engine(secrets.token_hex(4))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def flow_image(docker_engine: Engine) -> str:
    return build(docker_engine)


@pytest.fixture(scope="session")
def container_stack(
    docker_engine: Engine, flow_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    shared, tests = tmp_path_factory.getbasetemp(), ROOT / "tests"
    pool = DockerPool(
        image=flow_image, labels=docker_engine.labels, volumes=[f"{shared}:{shared}", f"{tests}:{tests}:ro"]
    )
    with Stack(tmp_path_factory.mktemp("stack"), pool=POOL, docker=pool, start_seconds=240) as stack:
        yield stack


@pytest.fixture
def stack(container_stack: Stack) -> Iterator[Stack]:
    with container_stack.activated():
        yield container_stack


@pytest.fixture(scope="session")
def work_in_containers(container_stack: Stack) -> str:
    """The tests' batch flow, its runs in containers."""
    with container_stack.activated():
        return deploy_in_containers(job_flows.work, "work")


@pytest.fixture
def job(stack: Stack, docker_engine: Engine, tmp_path_factory: pytest.TempPathFactory,
        request: pytest.FixtureRequest) -> Iterator[ContainerJob]:  # fmt: skip
    """What still runs at the end is cancelled."""
    name = request.node.name.replace("[", "-").replace("]", "").removeprefix("test_")[:60]
    watched = ContainerJob(stack, tmp_path_factory.mktemp("job"), f"{name}-{secrets.token_hex(2)}", docker_engine)
    logging.getLogger("orchestrator").setLevel(logging.INFO)
    yield watched
    watched.cancel_what_is_left()
