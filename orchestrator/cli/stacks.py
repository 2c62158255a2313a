"""Commands with a Prefect of their own, `up` and `demo`: the server of a profile or PREFECT_API_URL is not touched."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps as json_text
from pathlib import Path
from typing import Annotated

import yaml  # type: ignore[import-untyped]  # comes with Prefect, without types

from orchestrator.cli.options import OUTPUT, PLACE, Json, flag
from orchestrator.cli.terminal import give, give_json, say
from orchestrator.errors import ConfigurationError
from orchestrator.stack import DockerPool, Stack, StackError
from orchestrator.stack.containers import IMAGE
from orchestrator.stack.own import OWN
from orchestrator.stack.stack import DATABASE_VARIABLE, REDIS_VARIABLE

_SERVER_AUTH = "PREFECT_SERVER_API_AUTH_STRING"

Home = Annotated[
    Path | None,
    flag(
        "--home", "Folder for database, logs and jobs; kept. Default: a temporary one, removed at the end.",
        group=PLACE, env="ORCHESTRATOR_STACK_HOME",
    ),
]  # fmt: skip
Port = Annotated[
    int | None,
    flag("--port", "TCP port on 127.0.0.1. Default: a free one.", group=PLACE, env="ORCHESTRATOR_STACK_PORT"),
]

Database = Annotated[
    str | None,
    flag(
        "--database",
        "PostgreSQL for the server, `postgresql://user:password@host/name`, empty or a Prefect's; a password belongs "
        "into the variable, because others can read command lines. Default: SQLite in the home folder.",
        group=PLACE, env=DATABASE_VARIABLE,
    ),
]  # fmt: skip
Redis = Annotated[
    str | None,
    flag(
        "--redis", "Redis for the server's messages, `redis://host:6379/0`; with --database only.",
        group=PLACE, env=REDIS_VARIABLE,
    ),
]  # fmt: skip


def up(
    *,
    prefect_file: Annotated[
        Path | None,
        flag("--prefect-file", "Deployments to deploy. Default: ./prefect.yaml, if there is one.", group=PLACE),
    ] = None,
    home: Home = None,
    port: Port = None,
    pool: Annotated[
        str | None,
        flag(
            "--pool",
            "Name of the process work pool. Default: the file's first, else `local`.",
            group=PLACE,
            env="ORCHESTRATOR_STACK_POOL",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        flag("--limit", "Most runs at once in that pool.", group=PLACE, env="ORCHESTRATOR_STACK_LIMIT"),
    ] = None,
    docker: Annotated[
        bool,
        flag(
            "--docker",
            "Also a docker work pool `docker` with a worker, and the deployments of ./docker/prefect.yaml, if there is "
            "one. Containers see the folder for jobs at its own path.",
            group=PLACE,
            env="ORCHESTRATOR_STACK_DOCKER",
        ),
    ] = False,
    image: Annotated[
        str | None,
        flag(
            "--image",
            "Image of that pool's containers; this package is in it. Default: the one of this version.",
            group=PLACE,
            env="ORCHESTRATOR_STACK_IMAGE",
        ),
    ] = None,
    database: Database = None,
    redis: Redis = None,
    stop: Annotated[
        Path | None,
        flag(
            "--stop",
            "Stop the stack that was left running in that folder.",
            group=OUTPUT,
            env="ORCHESTRATOR_STACK_STOP",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Start a Prefect of one's own (server, UI, worker) with the deployments of a prefect.yaml; Ctrl-C ends it."""
    if stop is not None:
        ended = Stack.stop_left(stop)
        give_json({"ended": ended}) if json else give(f"stopped {ended} processes")
        return 0
    if prefect_file is None and Path("prefect.yaml").exists():
        prefect_file = Path("prefect.yaml")
    if prefect_file is not None and not prefect_file.is_file():
        wrong = "is no plain file" if prefect_file.exists() else "does not exist"
        raise ConfigurationError(f"{prefect_file} {wrong}", field="prefect_file")
    if image is not None and not docker:
        raise ConfigurationError("is for the containers that --docker starts", field="image")
    containers = DockerPool(image=image or IMAGE) if docker else None
    named = _pools(prefect_file) if prefect_file is not None else []
    pool = pool or next((name for name in named if containers is None or name != containers.name), "local")
    say("starting a Prefect server and a worker (about ten seconds)")
    # Somebody who asks for a password must not get a server without one.
    wanted = os.environ.get(_SERVER_AUTH)
    settings = {_SERVER_AUTH: wanted} if wanted else {}
    wanted_stack = Stack(
        home, port, pool=pool, pool_limit=limit, settings=settings, database=database, redis=redis, docker=containers
    )  # fmt: skip
    with ended_by_sigterm(), wanted_stack as stack:
        say("registering the parent" + (f" and the deployments of {prefect_file}" if prefect_file is not None else ""))
        deployed = deploy_all(stack, prefect_file)
        try:
            _announce(stack, deployed, json)
            while stack.is_up:
                time.sleep(1)
            say("the server was ended from elsewhere")
        except KeyboardInterrupt:
            say("stopping")
    return 0


def _announce(stack: Stack, deployed: list[str], json: bool) -> None:
    if json:
        facts = {"ui_url": stack.ui_url, "api_url": stack.api_url, "home": str(stack.home), "pool": stack.pool}
        give_json(facts | {"database": str(stack.backing), "deployments": deployed})
    else:
        give(f"UI:          {stack.ui_url}")
        give(f"database:    {stack.backing}")
        give("deployments: " + ", ".join(deployed))
        if stack.docker is not None:
            give(f"containers:  work pool {stack.docker.name!r}, image {stack.docker.image}")
        give("use it from another terminal:")
        give(f"  export PREFECT_API_URL={stack.api_url} PREFECT_HOME={stack.home}")
        if stack.auth is not None:
            give(f"  and PREFECT_API_AUTH_STRING as {_SERVER_AUTH} is here")
    sys.stdout.flush()
    say("Ctrl-C stops it")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within: SIGTERM ends the command as Ctrl-C does, so that its stack is stopped in order."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def deploy_all(stack: Stack, prefect_file: Path | None) -> list[str]:
    """Deploy that file and whatever it lacks of our own deployments; the names of all deployments then.

    Work pools that the file names and the stack lacks are created, with a worker each: one missing pool would stop
    `prefect deploy --all`. Source: prefect cli/deploy, 3.8.8, measured.
    """
    if prefect_file is not None:
        for pool in _pools(prefect_file):
            if pool == stack.pool or (stack.docker is not None and pool == stack.docker.name):
                continue
            stack.create_pool(pool)
            stack.start_worker(pool=pool, wait=False)
        stack.deploy(prefect_file)
    twins = Path("docker", "prefect.yaml")
    if stack.docker is not None and twins.is_file():
        stack.deploy(twins, folder=Path.cwd())
    missing = [own.entry(stack.pool) for own in OWN if not _is_deployed(stack, own.name)]
    if missing:
        folder = stack.home / "deployments"
        folder.mkdir(exist_ok=True)
        (folder / "prefect.yaml").write_text(json_text({"deployments": missing}))
        stack.deploy(folder / "prefect.yaml")
    flows = {f["id"]: f["name"] for f in stack.request("POST", "/flows/filter", {})}
    found = stack.request("POST", "/deployments/filter", {})
    return sorted(f"{flows[d['flow_id']]}/{d['name']}" for d in found)


def _is_deployed(stack: Stack, name: str) -> bool:
    try:
        stack.request("GET", f"/deployments/name/{name}")
    except StackError:
        return False
    return True


def _pools(prefect_file: Path) -> list[str]:
    """Names of the work pools that a prefect.yaml's deployments use, in its order."""
    try:
        entries = (yaml.safe_load(prefect_file.read_text()) or {}).get("deployments") or []
        names = dict.fromkeys((entry.get("work_pool") or {}).get("name") for entry in entries)
    except (yaml.YAMLError, AttributeError, TypeError, OSError, ValueError) as e:
        reason = " ".join(str(e).split())[:200]
        raise ConfigurationError(f"{prefect_file} is not a prefect.yaml: {reason}", field="prefect_file") from e
    return [name for name in names if isinstance(name, str) and "{" not in name]
