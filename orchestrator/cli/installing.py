"""Commands about an existing Prefect: `deploy` registers the parent there, `doctor` says what is wrong or tight."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

from orchestrator.cli.options import JOB, PLACE, Json, MaxInFlight, Storage, flag
from orchestrator.cli.terminal import give, give_json, say
from orchestrator.errors import ConfigurationError, OrchestratorError

if TYPE_CHECKING:
    from orchestrator.engine.admin import Admin, Pool

PoolName = Annotated[
    str | None, flag("--pool", "Work pool on which the parent runs. Default: the only one there is.", group=PLACE)
]


def deploy(
    *,
    pool: PoolName = None,
    name: Annotated[
        str, flag("--name", "Name of the deployment.", group=PLACE, env="ORCHESTRATOR_DEPLOYMENT_NAME")
    ] = "default",
    storage: Storage = None,
    image: Annotated[
        str | None,
        flag("--image", "Container pools: an image in which this package is installed.", group=PLACE),
    ] = None,
    create_pool: Annotated[
        bool,
        flag(
            "--create-pool",
            "Create the pool if there is none of that name: a docker pool with --image, else a process pool.",
            group=PLACE,
        ),
    ] = False,
    job_variable: Annotated[
        list[str] | None,
        flag("--job-variable", "NAME=VALUE for the parent's runs; JSON where it is JSON. Repeatable.", group=PLACE),
    ] = None,
    json: Json = False,
) -> int:
    """Register the parent flow `orchestrate` on an existing Prefect: the form in its UI, schedules, `run --detach`.

    Also the flows that look after jobs, under the same name: `control-job` (stop, pause, resume, scale), and
    `cleanup-jobs`, its daily schedule paused.
    """
    facts = asyncio.run(_deploy(pool, name, storage, image, create_pool, _variables(job_variable)))
    if json:
        give_json(facts)
        return 0
    give(f"deployed {', '.join([facts['deployment'], *facts['also']])} on work pool {facts['pool']!r}")
    if facts["workers_online"] == 0:
        say(f"no worker polls it yet: prefect worker start --pool {facts['pool']}")
    if facts["url"]:
        give(facts["url"])
    return 0


def _variables(pairs: list[str] | None) -> dict[str, Any]:
    from orchestrator.cli.running import parameters_of

    return parameters_of(pairs, field="job_variable")


async def _deploy(
    pool: str | None, name: str, storage: str | None, image: str | None, create_pool: bool, variables: dict[str, Any]
) -> dict[str, Any]:
    from importlib import import_module
    from importlib.metadata import version

    from orchestrator.engine.admin import open_admin
    from orchestrator.engine.registering import register
    from orchestrator.flows.parent import orchestrate_flow
    from orchestrator.flows.sharing import check_seen
    from orchestrator.stack.own import OWN, PARENT
    from orchestrator.store import absolute_url, open_store, probe

    async with open_admin() as admin:
        server = await admin.server()
        pool = pool or await _only_pool(admin)
        found = await admin.pool(pool)
        planned = await _planned_pool(pool, image, storage) if create_pool else None
        if planned is not None and found is not None:
            await admin.ensure_pool(pool, planned.type)  # it is there; of another type it is refused
        found = found or planned
        if found is None:
            known = ", ".join(sorted(p.name for p in await admin.pools())) or "none"
            raise ConfigurationError(
                f"there is no work pool {pool!r} (there is: {known}); --create-pool makes one", field="pool"
            )
        environment = dict(variables.pop("env", {}) or {})
        if storage is not None:
            storage = absolute_url(storage)
            await asyncio.to_thread(check_seen, storage, found, "the parent", variables)
            place = storage
            await asyncio.to_thread(lambda: probe(open_store(place)))
            environment["ORCHESTRATOR_STORAGE"] = storage
        if image is not None and found.type == "process":
            raise ConfigurationError(f"the work pool {pool!r} starts processes, which have no image", field="image")
        if not (image or found.image or "image" in variables) and found.type not in ("process", "prefect-agent"):
            raise ConfigurationError(
                f"the work pool {pool!r} ({found.type}) needs an image in which this package is installed",
                field="image",
            )
        if found is planned and planned is not None:
            await _create_pool(admin, planned)
        how: dict[str, Any] = {
            "pool": pool,
            "version": version("prefect-batch-orchestrator"),
            "image": image,
            "job_variables": variables | ({"env": environment} if environment else {}),
        }
        id_ = await register(orchestrate_flow, name, **how)
        also = []
        for own in OWN:
            if own is PARENT:
                continue
            module, _, function = own.entrypoint.rpartition(".")
            flow = getattr(import_module(module), function)
            # Under the parent's name: they have its pool and its storage, and another set's keeps its own.
            await register(flow, name, **how, schedules=own.schedules)
            also.append(f"{flow.name}/{name}")
        url = f"{server.ui_url}/deployments/deployment/{id_}" if server.ui_url else None
        return {
            "deployment": f"{orchestrate_flow.name}/{name}",
            "id": id_,
            "also": also,
            "pool": pool,
            "workers_online": found.workers_online,
            "storage": storage,
            "url": url,
        }


async def _planned_pool(name: str, image: str | None, storage: str | None) -> Pool:
    """The pool to be created: with an image a docker pool, whose containers see a local folder of jobs."""
    from orchestrator.engine.admin import Pool
    from orchestrator.store import local_path

    folder = await asyncio.to_thread(local_path, storage) if image is not None and storage is not None else None
    volumes = () if folder is None else (f"{folder}:{folder}",)
    return Pool(name, "process" if image is None else "docker", False, None, 0, image=image, volumes=volumes)


async def _create_pool(admin: Admin, pool: Pool) -> None:
    from orchestrator.stack.containers import docker_template

    if pool.image is None:
        await admin.ensure_pool(pool.name)
        return
    owner = f"{os.geteuid()}:{os.getegid()}" if pool.volumes else None
    await admin.ensure_pool(pool.name, "docker", docker_template(image=pool.image, volumes=pool.volumes, user=owner))


async def _only_pool(admin: Admin) -> str:
    pools = await admin.pools()
    if len(pools) != 1:
        known = ", ".join(sorted(p.name for p in pools))
        raise ConfigurationError(
            f"name one of the work pools: {known}"
            if pools
            else "there is no work pool; --pool NAME --create-pool makes one",
            field="pool",
        )
    return str(pools[0].name)


def doctor(
    *,
    deployment: Annotated[
        str | None,
        flag(
            "--deployment", "A batch deployment to look at, `flow-name/deployment-name`.",
            group=JOB, env="ORCHESTRATOR_BATCH_DEPLOYMENT",
        ),
    ] = None,
    max_in_flight: MaxInFlight = None,
    storage: Storage = None,
    json: Json = False,
) -> int:  # fmt: skip
    """What is wrong or tight between here, Prefect and the storage, in plain words; ends with 1 if anything is."""
    from orchestrator.cli.checks import Findings, examine

    findings = Findings()
    unreachable: OrchestratorError | None = None
    try:
        asyncio.run(examine(findings, deployment, max_in_flight or 8, storage))
    except OrchestratorError as e:
        findings.problem(str(e))
        unreachable = e
    if json:
        give_json({"ok": not findings.problems, "findings": findings.to_json()})
    else:
        for level, text in findings.lines:
            give(f"{level:<8} {text}")
        sys.stdout.flush()
    if unreachable is not None:
        return unreachable.exit_code
    return 1 if findings.problems else 0
