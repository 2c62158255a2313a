"""Docker work pools: the base job template that our containers run by, and whether there is an engine and an image.

The template is Prefect's own with other defaults, and with what a container may do narrowed: no capability, no new
privileges, a read-only root with a scratch folder in memory, bounds on memory and processes, an init process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from typing import Any

from orchestrator.errors import ConfigurationError

VERSION = version("prefect-batch-orchestrator")
IMAGE = f"prefect-batch-orchestrator:{VERSION}"
"""The tag that `docker/Dockerfile` is built under; never `latest`, which Docker workers pull for every run."""
BUILD = f"docker build -f docker/Dockerfile -t {IMAGE} ."
SCRATCH = "/tmp"
IMAGE_UID = 10001
COMMAND = "python -m orchestrator.start --supervised"
STACK_LABEL = "io.prefect-batch-orchestrator.stack"


def docker_template(
    *,
    image: str = IMAGE,
    volumes: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    user: str | None = None,
) -> dict[str, Any]:
    """Base job template of a docker work pool, with these defaults of its variables.

    Args:
        image: What runs; it must have this package and the same Prefect.
        volumes: As Docker writes them, `source:folder inside[:mode]`.
        env: Added to what containers get by default.
        user: `uid[:gid]` of the processes inside; None: the image's own.
    """
    # Source: prefect_docker/worker.py `DockerWorkerJobConfiguration`, 0.7.4: `container_create_kwargs` go to docker-py.
    from prefect_docker.worker import DockerWorker  # type: ignore[import-untyped]

    template: dict[str, Any] = DockerWorker.get_default_base_job_template()
    variables: dict[str, Any] = template["variables"]["properties"]
    for fixed in ("privileged", "memswap_limit", "container_create_kwargs"):
        del variables[fixed]
    # Not inherited: a container gets the worker's Prefect settings, its PREFECT_HOME among them.
    home = {"PREFECT_HOME": f"{SCRATCH}/prefect", "PREFECT_PROFILES_PATH": f"{SCRATCH}/prefect/profiles.toml"}
    defaults = {
        "command": COMMAND, "image": image, "image_pull_policy": "IfNotPresent", "auto_remove": True,
        "stream_output": True,  # else the worker does not hear of a container that was killed
        "mem_limit": "1g", "volumes": list(volumes), "labels": dict(labels or {}), "env": home | dict(env or {}),
    }  # fmt: skip
    for name, value in defaults.items():
        variables[name]["default"] = value
    variables["mem_limit"]["description"] += " There is no swap above it."
    variables["image"]["description"] = "What containers start from; this package and the server's Prefect are in it."
    variables["command"]["description"] = "What a container starts; see docs/containers.md before you change it."
    variables |= {
        "user": {
            "anyOf": [{"type": "string"}, {"type": "null"}], "default": user, "title": "User",
            "description": "User and group of the processes inside, `uid:gid`; by default the image's. "
            "Whoever owns a mounted job folder.",
        },
        "pids_limit": {
            "type": "integer", "default": 512, "title": "Process Limit",
            "description": "Most processes and threads of a container at once.",
        },
        "scratch": {
            "type": "string", "default": "rw,nosuid,nodev,noexec,size=512m,mode=1777", "title": "Scratch Folder",
            "description": f"Options of the file system in memory at {SCRATCH}; what lies there counts as memory.",
        },
        "read_only": {
            "type": "boolean", "default": True, "title": "Read Only",
            "description": f"If set, containers can write to {SCRATCH} and mounted volumes alone.",
        },
    }  # fmt: skip
    template["job_configuration"] |= {
        "privileged": False,
        "memswap_limit": "{{ mem_limit }}",
        "container_create_kwargs": {
            "init": True,  # SIGTERM ends the main process, and what it leaves behind is collected
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "read_only": "{{ read_only }}",
            "pids_limit": "{{ pids_limit }}",
            "tmpfs": {SCRATCH: "{{ scratch }}"},
            "user": "{{ user }}",
        },
    }
    return template


@dataclass(frozen=True)
class DockerPool:
    """A docker work pool of a stack, with one worker.

    Args:
        name: Of the pool.
        image: What its runs start from.
        labels: Of its containers, beside the stack's own.
        volumes: Mounted beside the folder for jobs.
        env: For its runs, beside what they get in any case.
        user: `uid[:gid]` of the processes inside; None: whoever can write to the stack's folder for jobs.
    """

    name: str = "docker"
    image: str = IMAGE
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None


def check_engine(image: str = IMAGE) -> None:
    """Nothing, when a Docker engine answers and has the image.

    Raises:
        ConfigurationError: it does not; the text says what to do.
    """
    docker = _docker()
    try:
        client = docker.from_env(timeout=10)
    except docker.errors.DockerException as e:
        raise _no_engine(e) from e
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound as e:
        build = f"build it in a checkout of this package: {BUILD}" if image == IMAGE else f"docker pull {image}"
        raise ConfigurationError(f"the Docker engine has no image {image}; {build}", field="image") from e
    except (docker.errors.DockerException, OSError) as e:
        raise _no_engine(e) from e
    finally:
        client.close()


def _docker() -> Any:
    """The engine's client library, which has no types; imported when it is wanted, by those who want containers."""
    return import_module("docker")


def _no_engine(error: Exception) -> ConfigurationError:
    place = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return ConfigurationError(
        f"no Docker engine answers at {place} ({reason}); start it, or say where it is: export DOCKER_HOST=...",
        field="docker",
    )


def remove_containers(label: str, value: str) -> int:
    """End and remove the containers that carry a label; how many there were. An engine that is gone has none."""
    docker = _docker()
    try:
        client = docker.from_env(timeout=30)
    except docker.errors.DockerException:
        return 0
    try:
        found = client.containers.list(all=True, filters={"label": f"{label}={value}"}, ignore_removed=True)
        for container in found:
            try:
                container.remove(force=True)
            except docker.errors.APIError:
                pass  # it is going already
        return len(found)
    except (docker.errors.DockerException, OSError):
        return 0
    finally:
        client.close()
