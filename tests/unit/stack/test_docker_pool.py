"""The docker pool's template, and what is said where there is no engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration

from orchestrator.errors import ConfigurationError
from orchestrator.stack import DockerPool, Stack
from orchestrator.stack.containers import COMMAND, IMAGE, docker_template


class NoBlocks:
    """In place of a client: these values refer to no block and no variable of a workspace."""

    async def read_variable_by_name(self, name: str) -> None:
        raise AssertionError(f"asked for {name}")


def configuration(template: dict[str, Any] | None = None, **values: Any) -> DockerWorkerJobConfiguration:
    """What a worker makes of a run's job variables."""
    made = DockerWorkerJobConfiguration.from_template_and_values(
        base_job_template=template or docker_template(), values=values, client=cast(Any, NoBlocks())
    )
    return asyncio.run(made)


def test_a_container_is_started_as_the_template_says() -> None:
    job = configuration()
    assert (job.command, job.image, job.image_pull_policy) == (COMMAND, IMAGE, "IfNotPresent")
    assert (job.stream_output, job.auto_remove, job.privileged) == (True, True, False)
    assert (job.mem_limit, job.memswap_limit) == ("1g", "1g")
    assert job.container_create_kwargs == {
        "init": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "read_only": True,
        "pids_limit": 512, "tmpfs": {"/tmp": "rw,nosuid,nodev,noexec,size=512m,mode=1777"},
    }  # fmt: skip
    assert job.env["PREFECT_HOME"] == "/tmp/prefect"


def test_a_deployments_job_variables_go_before_the_pools() -> None:
    job = configuration(mem_limit="4g", env={"LOG": "1"}, pids_limit=64, user="1000:1000", image="mine:2")
    assert (job.mem_limit, job.memswap_limit, job.image) == ("4g", "4g", "mine:2")
    assert job.env == {
        "PREFECT_HOME": "/tmp/prefect",
        "PREFECT_PROFILES_PATH": "/tmp/prefect/profiles.toml",
        "LOG": "1",
    }
    assert job.container_create_kwargs is not None
    assert (job.container_create_kwargs["pids_limit"], job.container_create_kwargs["user"]) == (64, "1000:1000")


def test_what_prefect_offers_stays_on_offer_but_for_what_would_widen_it() -> None:
    prefects = set(DockerWorker.get_default_base_job_template()["variables"]["properties"])
    ours = set(docker_template()["variables"]["properties"])
    assert prefects - ours == {"privileged", "memswap_limit", "container_create_kwargs"}
    assert ours - prefects == {"user", "pids_limit", "scratch", "read_only"}


def test_without_an_engine_a_stack_says_so_before_it_starts_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(
        ConfigurationError, match=r"no Docker engine answers at unix://.*export DOCKER_HOST="
    ) as refused:
        Stack(tmp_path / "home", docker=DockerPool()).start()
    assert (refused.value.field, refused.value.exit_code) == ("docker", 2)
    assert not (tmp_path / "home").exists()
