"""Jobs before they run: `plan` stages one into a temporary folder and looks at it, `run --detach` hands one over."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.cli.checks import SQLITE_COMFORT
from orchestrator.cli.jobs import storage_root
from orchestrator.engine.admin import open_admin
from orchestrator.engine.context import run_url
from orchestrator.engine.parent import PrefectGateway
from orchestrator.errors import (
    ConfigurationError,
    DeploymentNotFoundError,
    EngineError,
    EngineUnavailableError,
    JobNotFoundError,
    StorageError,
)
from orchestrator.flows.prepare import check_same, create_job, new_job_id, options_of
from orchestrator.flows.request import JobSpec, make_spec
from orchestrator.flows.target import Target, check_groups, check_items, find_target
from orchestrator.settings import Settings
from orchestrator.store import (
    JobFolder,
    JobRecord,
    as_source,
    is_local,
    job_folder_url,
    open_store,
    probe,
    stage,
)

REQUESTS_PER_CHILD = 28  # made by a child run's own process and its worker. Source: measured on Prefect 3.8.8
REQUESTS_PER_ATTEMPT = 6  # made by us, at most


@dataclass(frozen=True)
class Plan:
    """What would happen.

    Args:
        smallest, largest: Items of the smallest and of the largest batch; 0 without batches.
        bytes, largest_bytes: Of all items as JSON; of the largest batch.
        window: Child runs at once, after the limits of pool, queue and deployment.
        requests: API requests that the child runs and their submission would make together.
        advice: What is tight, one line each.
    """

    deployment: str
    items: int
    batches: int
    smallest: int
    largest: int
    bytes: int
    largest_bytes: int
    max_in_flight: int
    window: int
    requests: int
    kill_switch: str | None
    storage: str
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"advice": list(self.advice)}

    def text(self) -> str:
        """The plan for people."""
        sizes = f"{self.smallest:,}" if self.smallest == self.largest else f"{self.smallest:,} to {self.largest:,}"
        rows = [
            ("deployment", self.deployment),
            ("items", f"{self.items:,} ({self.bytes:,} bytes as JSON)"),
            ("batches", f"{self.batches:,} of {sizes} items (largest {self.largest_bytes:,} bytes)"),
            ("at once", f"{self.window:,} child runs" + self._less()),
            ("requests", f"about {self.requests:,} to Prefect, and at most 60 a minute for watching"),
            ("kill switch", self.kill_switch or "none"),
            ("storage", self.storage),
        ]
        lines = [f"{name:<12} {value}" for name, value in rows]
        return "\n".join([*lines, *(f"{'note':<12} {line}" for line in self.advice), "nothing was created"])

    def _less(self) -> str:
        return f" (of {self.max_in_flight:,} asked for)" if self.window < self.max_in_flight else ""


def make_plan(request: dict[str, Any]) -> Plan:
    """Check the request as `run` would, read its items, cut them.

    Raises:
        What `orchestrate` raises for a request that cannot be carried out.
    """
    settings = Settings()
    items = request.pop("items")
    spec = make_spec(**request)
    root = storage_root(spec.storage)
    source = as_source(items, storage=root)
    target, sqlite = asyncio.run(_ask(spec, root, settings))
    probe(open_store(root))
    with tempfile.TemporaryDirectory(prefix="orchestrator-plan-") as temporary:
        # Another job's keys are looked up next to the folder: only then does the staging go where the job would.
        place = root if spec.skip_succeeded_of else temporary
        folder = JobFolder(job_folder_url(place, f"plan-{new_job_id()}"))
        staged = stage(source, folder, "plan", options_of(spec))
        try:
            record = JobRecord("plan", "plan", "", {}, staged.total, staged.batches, staged.parts, staged.bytes)
            future = folder.as_if(record)
            batches = list(future.batches())
            if isinstance(spec.deployment, dict):
                check_groups(spec, (b.group for b in batches))
            if spec.pass_items.by_value:
                check_items(spec, target, future, batches, settings.parameters_max_bytes)
        finally:
            folder.discard_staging("plan")
    counts = [b.count for b in batches]
    return Plan(
        deployment=", ".join(dict.fromkeys(d.name for d in target.deployments.values())),
        items=staged.total,
        batches=len(batches),
        smallest=min(counts, default=0),
        largest=max(counts, default=0),
        bytes=staged.bytes,
        largest_bytes=max((b.length for b in batches), default=0),
        max_in_flight=spec.max_in_flight,
        window=target.window,
        requests=len(batches) * (REQUESTS_PER_CHILD + REQUESTS_PER_ATTEMPT),
        kill_switch=spec.kill_switch,
        storage=root,
        advice=(*staged.warnings, *target.advice, *_advice(len(batches), staged.total, target.window, sqlite)),
    )


async def _ask(spec: JobSpec, root: str, settings: Settings) -> tuple[Target, bool]:
    """What the deployments are, and whether the server's database is SQLite."""
    gateway = PrefectGateway(masked_env=settings.masked_env)
    try:
        target = await find_target(spec, gateway, None, root)
    finally:
        await gateway.close()
    async with open_admin(settings.masked_env) as admin:
        return target, (await admin.server()).database == "sqlite"


def _advice(batches: int, items: int, window: int, sqlite: bool) -> list[str]:
    said = []
    if not items:
        said.append("there are no items: the job would be completed at once")
    if sqlite and window > SQLITE_COMFORT:
        said.append(f"the server's database is SQLite: with more than {SQLITE_COMFORT} child runs at once it delays")
    if batches and items / batches < 5 and batches > 50:
        said.append("few items per child run: each costs a second or two to start; a larger --batch-size does better")
    if batches < window and items > 2 * window:
        said.append(f"only {batches} batches for {window} places: a smaller --batch-size would use them all")
    return said


def start_detached(request: dict[str, Any]) -> dict[str, Any]:
    """Stage a job here and have the deployed parent carry it out; facts about what was started.

    The items are read on this machine; the parent's run gets their place only.

    Args:
        request: As `orchestrate()` takes it, `items` and `job_id` included.

    Raises:
        What `orchestrate` raises for a request that cannot be carried out; nothing was created then.
        EngineUnavailableError: the job is staged, but whether its parent was started is not known.
    """
    return asyncio.run(_start_detached(request))


async def _start_detached(request: dict[str, Any]) -> dict[str, Any]:
    settings = Settings()
    items, job_id = request.pop("items"), request["job_id"]
    spec = make_spec(**request)
    root = storage_root(spec.storage)
    source, folder = as_source(items, storage=root), JobFolder(job_folder_url(root, job_id))
    async with open_admin(settings.masked_env) as admin:
        try:
            parent = await admin.find_deployment(settings.deployment)
        except DeploymentNotFoundError as e:
            raise ConfigurationError(
                f"the parent {settings.deployment!r} is not deployed (--detach needs it): `orchestrator deploy` adds it"
            ) from e
        if is_local(root) and parent.pool_type not in (None, "process"):
            raise StorageError(
                f"{root} is a folder of this machine, which the parent on the {parent.pool_type} pool {parent.pool!r} "
                "cannot see; give a URL that both reach, e.g. s3://bucket/jobs"
            )
        gateway = PrefectGateway(masked_env=settings.masked_env)
        try:
            target = await find_target(spec, gateway, None, root)
        finally:
            await gateway.close()
        try:
            record = await asyncio.to_thread(folder.read_job)
            check_same(record, spec, source)
            created = False
        except JobNotFoundError:
            await asyncio.to_thread(probe, open_store(root))
            record, _ = await asyncio.to_thread(create_job, spec, source, folder, job_id, target, settings)
            created = True
        parameters = {
            "deployment": spec.deployment,
            "items": {"resume": job_id},
            "advanced": {"storage": root},
        }
        try:
            run = await admin.trigger(parent, parameters, name=f"job {job_id}", tags=[f"job:{job_id}"])
        except EngineUnavailableError as e:
            raise EngineUnavailableError(
                f"{e} The job is staged: `orchestrator resume {job_id}` carries it out."
            ) from e
        except EngineError:
            if created:
                await asyncio.to_thread(folder.delete)
            raise
        return {
            "job_id": job_id,
            "parent_run": run.id,
            "deployment": parent.name,
            "items": record.total,
            "batches": record.batches,
            "storage": folder.url,
            "url": run_url(run.id),
        }
