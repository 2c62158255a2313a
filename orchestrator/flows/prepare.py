"""From a request to a job that is ready to run; everything that can be refused is refused here.

Order matters: what costs nothing is checked first, the deployment is looked up before storage is touched, and the job
exists from the moment `job.json` is written. Until then nothing was created that anybody would have to clean up.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.core.machine import Setup
from orchestrator.core.report import Report
from orchestrator.engine.context import ParentRun, prefect_home
from orchestrator.engine.gateway import Gateway
from orchestrator.engine.masking import Masker
from orchestrator.errors import (
    DamagedReportError,
    JobConflictError,
    JobNotFoundError,
    OrchestratorError,
    StorageError,
    StoreCorruptError,
)
from orchestrator.flows.links import first_of, link_again, link_new
from orchestrator.flows.request import JobSpec, make_spec
from orchestrator.flows.sameness import check_same
from orchestrator.flows.target import Target, check_groups, check_items, find_target
from orchestrator.reactor import Job, Times
from orchestrator.reactor.boundaries import Boundary, passed
from orchestrator.reactor.heart import Heart
from orchestrator.settings import Settings
from orchestrator.store import (
    JobFolder,
    JobRecord,
    Source,
    Staged,
    StageOptions,
    absolute_url,
    check_job_id,
    job_folder_url,
    local_path,
    open_store,
    probe,
    stage,
)
from orchestrator.store.records import OnLoss
from orchestrator.store.retries import origin


@dataclass(frozen=True)
class Prepared:
    """A job that can be started now.

    Args:
        old_report: The job is over already; nothing is left to run.
        max_requests_per_minute: What its parent may ask of Prefect; None for no bound.
        resumed: An earlier parent began it.
    """

    job: Job
    heart: Heart
    settings: Settings
    resumed: bool = False
    old_report: Report | None = None
    max_requests_per_minute: int | None = None

    @property
    def abandons(self) -> bool:
        """Whether a cancelled parent leaves the job, and the children to finish their batches."""
        return self.job.on_parent_cancelled == "abandon"


# ------------------------------------------------------------------ where


def storage_root(spec_storage: str | None, settings: Settings) -> str:
    """The absolute URL under which job folders lie.

    Raises:
        ConfigurationError: it is no URL that we can open, or holds user info.
    """
    return absolute_url(spec_storage or settings.storage or str(prefect_home() / "orchestrator" / "jobs"))


def check_shared(root: str) -> None:
    """Refuse storage that real child runs cannot read.

    Raises:
        StorageError: it lies in this process's memory.
    """
    if root.startswith("memory://"):
        raise StorageError(f"{root} lies in the memory of this process, where no child run can read it; give a folder")


def new_job_id() -> str:
    """An id for a job that is started outside of a flow run: a time for people, and chance."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


# ------------------------------------------------------------------ the job


async def prepare(
    spec: JobSpec,
    source: Source,
    gateway: Gateway,
    *,
    settings: Settings,
    parent: ParentRun | None = None,
    on_staging: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Prepared:
    """Make the job ready: a new one is staged; one of that id is taken over when its spec is the same.

    Args:
        on_staging: Called now and then with the items and bytes staged so far.
        say: Takes lines for people (advice and warnings).

    Raises:
        ConfigurationError and its kin: the request cannot be carried out; nothing was created.
        EngineUnavailableError: Prefect cannot be asked.
    """
    say = say or (lambda line: None)
    root = storage_root(spec.storage, settings)
    job_id = spec.job_id or new_job_id()
    folder = await asyncio.to_thread(JobFolder, job_folder_url(root, job_id))
    record: JobRecord | None = await asyncio.to_thread(_existing, folder)
    if record is not None:
        check_same(record, spec, source)
        if (
            not {"hash", "stop"} & (record.spec.get("source") or {}).keys()
        ):  # neither its content nor its end is part of the request
            say(
                f"job {job_id!r} exists since {record.created}: its {record.total:,} items are those that were staged "
                "then; the items given now are not read"
            )
        if (old := await asyncio.to_thread(finished, folder, job_id)) is not None:
            return await _over(record, folder, spec, old, settings)
    target = await find_target(spec, gateway, parent, root)
    resumed = record is not None
    warnings: tuple[str, ...] = ()
    if record is None:
        await asyncio.to_thread(lambda: probe(open_store(root)))
        created = await asyncio.to_thread(create_job, spec, source, folder, job_id, target, settings, on_staging)
        record, warnings = created[0], created[1].warnings
        await asyncio.to_thread(link_new, folder)
        if not record.total:
            warnings = (*warnings, "the source holds no items: there is nothing to do")
    for line in (*warnings, *target.advice):
        say(line)
    return await start_of(record, folder, spec, target, settings, parent, resumed=resumed)


async def take_over(
    job_id: str,
    root: str,
    gateway: Gateway,
    *,
    settings: Settings,
    parent: ParentRun | None = None,
    say: Callable[[str], None] | None = None,
) -> Prepared:
    """Make an existing job ready, as it was staged: nothing of the request is given again.

    Raises:
        JobNotFoundError: there is none of that id.
        JobConflictError: it was stopped, tripped or failed.
        EngineUnavailableError: Prefect cannot be asked.
    """
    folder = await asyncio.to_thread(JobFolder, job_folder_url(root, check_job_id(job_id)))
    record = await asyncio.to_thread(folder.read_job)
    spec = make_spec(**{**record.spec.get("job", {}), "job_id": job_id, "storage": root})
    if (old := await asyncio.to_thread(finished, folder, job_id)) is not None:
        return await _over(record, folder, spec, old, settings)
    target = await find_target(spec, gateway, parent, root)
    for line in target.advice:
        (say or (lambda line: None))(line)
    return await start_of(record, folder, spec, target, settings, parent, resumed=True)


def create_job(
    spec: JobSpec,
    source: Source,
    folder: JobFolder,
    job_id: str,
    target: Target,
    settings: Settings,
    on_staging: Callable[[int, int], None] | None = None,
) -> tuple[JobRecord, Staged]:
    """Stage the items, check them, and write `job.json`: from then on the job exists.

    Raises:
        SourceError, ConfigurationError: nothing is left behind.
    """
    nonce = secrets.token_hex(8)
    passed(Boundary.STAGING_BEGUN)
    staged = stage(source, folder, nonce, options_of(spec), on_progress=on_staging)
    passed(Boundary.ITEMS_STAGED)
    try:
        again = origin(folder, source.describe())
        local = local_path(folder.url) is not None
        record = record_of(spec, source, job_id, nonce, staged, settings, local, again)
        future = folder.as_if(record)
        if isinstance(spec.deployment, dict):
            check_groups(spec, (b.group for b in future.batches()))
        if spec.pass_items.by_value:
            check_items(spec, target, future, future.batches(), settings.parameters_max_bytes)
        if not folder.create_job(record):
            raise JobConflictError(f"job {job_id!r} was created by somebody else at the same moment; give another id")
    except BaseException:
        _discard(folder, nonce)
        raise
    passed(Boundary.JOB_WRITTEN)
    return record, staged


def _discard(folder: JobFolder, nonce: str) -> None:
    """Remove what was staged; unless the job may exist all the same, its creation carried out and never answered."""
    try:
        record = _existing(JobFolder(folder.store))
    except StoreCorruptError:
        record = None
    except (OrchestratorError, OSError):
        return  # nobody can tell; `cleanup` removes what belongs to no job
    if record is None or record.nonce != nonce:
        folder.discard_staging(nonce)


async def start_of(
    record: JobRecord,
    folder: JobFolder,
    spec: JobSpec,
    target: Target,
    settings: Settings,
    parent: ParentRun | None,
    *,
    resumed: bool,
    after: int | None = None,
    **more: str,
) -> Prepared:
    """Become the parent of an existing job.

    Args:
        after: Only if no parent came after that one.
        more: Said of the new parent besides which run and process it is.

    Raises:
        JobConflictError: one came.
    """
    if resumed:
        await asyncio.to_thread(link_again, folder)
    who = {"run": parent.name if parent else None, "run_id": parent.id if parent else None, "pid": os.getpid()}
    epoch = await asyncio.to_thread(folder.claim_epoch, {**who, "host": socket.gethostname(), **more}, after=after)
    passed(Boundary.EPOCH_CLAIMED)
    batches = await asyncio.to_thread(lambda: list(folder.batches()))
    child = record.spec.get("child", {})
    fence = float(child.get("fence_seconds", 2.0))
    # A child writes no more often than it looks at the folder.
    alive = max(fence, float(child.get("alive_seconds") or 0.0)) if child.get("alive_seconds") else 0.0
    setup = Setup(
        counts=[b.count for b in batches],
        max_in_flight=target.window,
        kill_switch=spec.switch("kill_switch"),
        enough_when=spec.switch("enough_when"),
        on_trip=spec.stop_mode,
        batch_retries=spec.retries,
        isolate=spec.isolate_crashing_items and not spec.pass_items.by_value,
        start_timeout=spec.start_timeout_seconds,
        batch_timeout=spec.batch_timeout_seconds,
        item_grace=fence + float(child.get("item_grace_seconds", 10.0)),
        cancel_deadline=settings.cancel_deadline_seconds,
        submit_concurrency=settings.submit_concurrency,
    )
    job = Job(
        id=record.job_id,
        nonce=record.nonce,
        folder=folder,
        batches=batches,
        setup=setup,
        deployments=target.deployments,
        epoch=epoch,
        fail_if=spec.switch("fail_if"),
        pass_items=spec.pass_items,
        parameters=spec.parameters,
        tags=spec.tags,
        job_variables=spec.job_variables,
        work_queue_name=spec.work_queue_name,
        page_run=parent.id if parent else None,
        url=parent.url if parent else None,
        mask=Masker(settings.masked_env),
        first=await asyncio.to_thread(first_of, folder),
        on_parent_cancelled=spec.on_parent_cancelled,
        times=Times(poll=settings.poll_seconds, fence=fence, alive=alive),
        age=_age(record) if resumed else 0.0,
    )
    on_loss: OnLoss = "stop" if spec.on_parent_cancelled == "cancel" else "finish"
    heart = Heart(folder, epoch, beat_seconds=settings.beat_seconds, on_loss=on_loss)
    budget = spec.max_requests_per_minute or settings.max_requests_per_minute
    return Prepared(job, heart, settings, resumed=resumed, max_requests_per_minute=budget)


def _age(record: JobRecord) -> float:
    """Seconds since the job was created, as far as the clocks of two machines agree; 0 when that cannot be read."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)  # it was created at a whole second too
    try:
        return max(0.0, (now - datetime.datetime.fromisoformat(record.created)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


async def _over(record: JobRecord, folder: JobFolder, spec: JobSpec, old: Report, settings: Settings) -> Prepared:
    heart = Heart(folder, 0, beat_seconds=settings.beat_seconds, on_loss="stop")
    job = Job(record.job_id, record.nonce, folder, (), Setup((), 1), {}, 0)
    return Prepared(job, heart, settings, resumed=True, old_report=old)


def options_of(spec: JobSpec, storage: str | None = None) -> StageOptions:
    """How the source is read and cut."""
    return StageOptions(
        batch_size=spec.effective_batch_size,
        max_bytes=spec.max_bytes,
        max_weight=spec.max_weight,
        select=spec.select,
        key=spec.key,
        weight=spec.weight,
        group_by=spec.group_by,
        unique_keys=spec.unique_keys,
        skip_succeeded_of=spec.skip_succeeded_of,
        storage=storage,
    )


def _existing(folder: JobFolder) -> JobRecord | None:
    try:
        return folder.read_job()
    except JobNotFoundError:
        return None


def finished(folder: JobFolder, job_id: str) -> Report | None:
    """The report of a job that did what was asked; None while it is not over.

    Raises:
        JobConflictError: it was stopped, tripped or failed: it cannot go on, only its items can be run again.
    """
    try:
        data = folder.read_report()
        if data is None:
            return None
        report = Report.from_json(data)
    except (StoreCorruptError, DamagedReportError):
        return None  # it is written anew from what parent and children left
    if report.verdict in ("completed", "enough"):
        return report
    raise JobConflictError(
        f"job {job_id!r} is over ({report.verdict.value}: {report.headline}); to run what is left, start a new job: "
        f"`orchestrator retry {job_id}`, or one with items `job:{job_id}?outcome=failed,unknown,not_started`"
    )


def record_of(
    spec: JobSpec,
    source: Source,
    job_id: str,
    nonce: str,
    staged: Staged,
    settings: Settings,
    local: bool,
    retry_of: Mapping[str, str] | None = None,
) -> JobRecord:
    """What `job.json` will hold: the request, what its children must know, and whose items are run again."""
    child = {
        "fence_seconds": settings.fence_seconds or (2.0 if local else 5.0),
        "item_grace_seconds": settings.item_grace_seconds,
        "lease_seconds": settings.lease_seconds,
        "alive_seconds": settings.alive_seconds,
        "isolate_crashing_items": spec.isolate_crashing_items,
        "result_max_bytes": settings.result_max_bytes,
        "masked_env": list(settings.masked_env),
        "news_seconds": news_seconds(spec, settings),
    }
    described = source.describe()
    return JobRecord(
        job_id=job_id,
        nonce=nonce,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        spec={
            "job": spec.to_json(),
            "source": described,
            "child": child,
            "tags": list(spec.tags),
            **(retry_of or {}),
        },
        total=staged.total,
        batches=staged.batches,
        parts=staged.parts,
        bytes=staged.bytes,
        hash=staged.hash,
        previous=described.get("job") if described.get("kind") == "job" else None,
    )


def news_seconds(spec: JobSpec, settings: Settings) -> float:
    """How far apart a child's news are: where requests are few, those of all children make no more than the parent."""
    budget = spec.max_requests_per_minute or settings.max_requests_per_minute
    return max(2.0, spec.max_in_flight / 10, 60 * spec.max_in_flight / budget if budget else 0.0)
