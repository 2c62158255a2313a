"""Commands that carry jobs out: `plan run resume`."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.cli.jobs import storage_root
from orchestrator.cli.looking import give_report, unpaused
from orchestrator.cli.options import (
    BatchSeconds,
    Detach,
    JobArgument,
    JobFlags,
    Json,
    RequestsPerMinute,
    Storage,
)
from orchestrator.cli.progress import LiveProgress
from orchestrator.cli.terminal import INTERRUPTED, give, give_json, say
from orchestrator.core.model import StopCause, StopMode, StopRecord
from orchestrator.core.report import Report
from orchestrator.errors import ConfigurationError, JobNotFoundError, OrchestratorError
from orchestrator.store import JobFolder, check_job_id, job_folder_url
from orchestrator.store.bounded import within
from orchestrator.store.jsonl import decode_json

if TYPE_CHECKING:
    from orchestrator.flows.plan import Plan
    from orchestrator.flows.requests import RequestPlan

T = TypeVar("T")
STOP_SECONDS = 3.0  # that an interrupt waits for the stop to be written


class LeftError(OrchestratorError):
    """A second Ctrl-C: the command ends at once; the stop that the first one wrote stays in force."""

    exit_code = INTERRUPTED


def parameters_of(pairs: list[str] | None, field: str = "param") -> dict[str, Any]:
    """`--param name=value` as a mapping; a value that is JSON is taken as such, anything else as text.

    Raises:
        ConfigurationError: a pair has no name or no `=`.
    """
    found: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigurationError(f"{pair[:80]!r} is not of the form NAME=VALUE", field=field)
        try:
            found[name] = decode_json(text)
        except ValueError:
            found[name] = text
    return found


def deployment_of(text: str | None) -> str | dict[str, str]:
    """`--deployment`: a name, or a JSON mapping of groups to names.

    Raises:
        ConfigurationError: it is missing, or looks like JSON and is not a mapping of texts.
    """
    if not text:
        raise ConfigurationError(
            "name the batch deployment: --deployment flow-name/deployment-name", field="deployment"
        )
    if not text.lstrip().startswith("{"):
        return text
    try:
        mapping = decode_json(text)
    except ValueError as e:
        raise ConfigurationError(f"is not a JSON mapping: {e}", field="deployment") from e
    if not all(isinstance(v, str) for v in mapping.values()):
        raise ConfigurationError("must map group values to flow-name/deployment-name", field="deployment")
    return dict(mapping)


def stoppable(work: Callable[[], T], folder: Callable[[], JobFolder | None]) -> T:
    """Do the work in a thread; Ctrl-C (or SIGTERM) stops the job through its folder and goes on waiting for its report.

    A folder that is away is written to as soon as it is back.

    Args:
        folder: The job's folder; None as long as the job does not exist, then an interrupt just leaves.

    Raises:
        LeftError: interrupted before the job existed, or a second time.
    """
    future: Future[T] = Future()

    def carry_out() -> None:
        try:
            future.set_result(work())
        except BaseException as e:  # noqa: BLE001 - whatever ended the work reaches the caller
            future.set_exception(e)

    def ask() -> bool:
        if (found := folder()) is None:
            return False
        found.request_stop(StopRecord(StopMode.CANCEL, StopCause.REQUESTED, "Ctrl-C", "command line"))
        return True

    def ask_again() -> None:
        while not future.done():
            with suppress(OrchestratorError, OSError):
                ask()
                return
            time.sleep(1.0)

    interrupts = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            raise LeftError("left; the job is being stopped, `orchestrator status` shows how far it is")
        leave = "Ctrl-C again leaves without waiting for the report"
        try:
            exists = within(STOP_SECONDS, ask)
        except (OrchestratorError, OSError) as e:
            say(f"the stop cannot be written yet ({e}); it is tried until it can; {leave}")
            threading.Thread(target=ask_again, name="stop", daemon=True).start()
            return
        if not exists:
            raise LeftError("interrupted before the job was created")
        say(f"stopping the job: child runs are being cancelled; {leave}")

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        threading.Thread(target=carry_out, name="job", daemon=True).start()
        while True:
            with suppress(TimeoutError):
                return future.result(timeout=0.2)  # short, so that a signal is handled soon
            if future.done():
                return future.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def request_of(flags: JobFlags) -> dict[str, Any]:
    """The flags as parameters of `orchestrate()`, those that were not given left out.

    Raises:
        ConfigurationError: deployment or items are missing, or a `--param` is malformed.
    """
    deployment = deployment_of(flags.deployment)
    if not flags.items:
        raise ConfigurationError("name what to work on: --items FILE, for instance", field="items")
    request: dict[str, Any] = {
        name: value
        for name in flags.__dataclass_fields__
        if (value := getattr(flags, name)) is not None and name not in ("param", "tag", "deployment")
    }
    request["deployment"] = deployment
    if flags.param:
        request["parameters"] = parameters_of(flags.param)
    if flags.tag:
        request["tags"] = flags.tag
    return request


def run(*, flags: JobFlags = JobFlags(), detach: Detach = False, json: Json = False) -> int:  # noqa: B008 - frozen
    """Fan items out over a batch deployment and wait for the report; Ctrl-C stops the job.

    Ends with 0 when the job did what was asked, 1 when it failed or tripped, 4 when it was stopped.
    """
    from orchestrator.flows.call import orchestrate_sync
    from orchestrator.flows.prepare import new_job_id

    request = request_of(flags)
    request["job_id"] = job_id = check_job_id(flags.job_id) if flags.job_id else new_job_id()
    if detach:
        from orchestrator.cli.detaching import start_detached

        started = start_detached(request)
        if json:
            give_json(started)
        else:
            give(f"job {job_id} is staged and started; `orchestrator status {job_id}` says how it is doing")
            if started["url"]:
                give(started["url"])
        return 0
    return watched(
        job_id,
        flags.storage,
        lambda progress: orchestrate_sync(**request, on_progress=progress, on_failure="return"),
        json,
    )


def resume(job: JobArgument, /, *, storage: Storage = None, json: Json = False) -> int:
    """Go on with a job that is paused, or whose parent died; what is finished is not run again."""
    from orchestrator.flows.call import resume_sync

    check_job_id(job)
    if unpaused(job, storage, json):
        return 0
    return watched(
        job,
        storage,
        lambda progress: resume_sync(job, storage=storage, on_progress=progress, on_failure="return"),
        json,
    )


def watched(job_id: str, storage: str | None, work: Callable[[LiveProgress], Report], json: bool) -> int:
    """Carry a job out with live progress, stop it on Ctrl-C, print its report; the exit code."""
    folder = JobFolder(job_folder_url(storage_root(storage), job_id))

    def existing() -> JobFolder | None:
        try:
            folder.read_job()
        except JobNotFoundError:
            return None
        return folder

    with LiveProgress() as progress:
        found = stoppable(lambda: work(progress), existing)
    give_report(found, json)
    return found.exit_code


def plan(
    *,
    flags: JobFlags = JobFlags(),  # noqa: B008 - frozen
    requests_per_minute: RequestsPerMinute = None,
    batch_seconds: BatchSeconds = 60.0,
    json: Json = False,
) -> int:
    """What `run` with the same flags would do: batches, sizes, requests, and what is tight. Creates nothing."""
    from orchestrator.flows.call import plan_sync

    found = plan_sync(**request_of(flags), requests_per_minute=requests_per_minute, batch_seconds=batch_seconds)
    if json:
        give_json(found.to_json())
    else:
        give(_plan_text(found, flags.max_in_flight))
    return 0


def _limit_rows(limit: RequestPlan) -> list[tuple[str, str]]:
    fits = f"max_in_flight={limit.max_in_flight:,} fits" if limit.max_in_flight else "no child run fits"
    return [
        (
            "limit",
            f"{limit.per_minute:,} requests a minute, batches of {limit.batch_seconds:g} s: {fits}; "
            f"{limit.parent:,} requests by the parent and {limit.children:,} by child runs take "
            f"at least {limit.minutes:,g} min",
        )
    ]


def _plan_text(found: Plan, wanted: int | None) -> str:
    sizes = f"{found.smallest:,}" if found.smallest == found.largest else f"{found.smallest:,} to {found.largest:,}"
    less = f" (of {wanted:,} asked for)" if wanted is not None and found.max_in_flight < wanted else ""
    parents, children = found.api_requests
    rounds = "round" if found.waves == 1 else "rounds"
    rows = [
        ("deployment", found.deployment),
        ("items", f"{found.items:,} ({found.bytes:,} bytes as JSON)"),
        ("batches", f"{found.batches:,} of {sizes} items, the largest of {found.largest_bytes:,} bytes"),
        ("at once", f"{found.max_in_flight:,} child runs{less}, in about {found.waves:,} {rounds}"),
        ("requests", f"about {children:,} by child runs, {parents:,} for them, and at most 60 a minute for watching"),
        *(_limit_rows(found.limit) if found.limit is not None else ()),
        ("kill switch", found.kill_switch or "none"),
        ("storage", found.storage),
        *(("note", line) for line in found.warnings),
    ]
    return "\n".join([*(f"{name:<12} {value}" for name, value in rows), "Nothing was created."])
