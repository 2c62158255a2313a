"""Doing what a survey found: settle jobs, ask child runs to end, remove folders.

Each is safe to be killed in and to be done twice or by two at once: a job is settled by becoming its parent, which one
of many can after a given one; a cancel is a request; a folder loses its `job.json` first and is no job from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from orchestrator.core.model import StopCause, StopMode, StopRecord
from orchestrator.core.report import Report
from orchestrator.engine.context import run_url
from orchestrator.engine.gateway import CancelReply, Capacity, Deployment, Gateway
from orchestrator.engine.leftovers import Leftovers
from orchestrator.errors import DeploymentNotFoundError, EngineError, JobConflictError, OrchestratorError
from orchestrator.flows.prepare import Prepared, start_of
from orchestrator.flows.request import JobSpec, make_spec
from orchestrator.flows.spans import size_text, span_text
from orchestrator.flows.survey import Act, Finding, Survey
from orchestrator.flows.target import Target
from orchestrator.settings import Settings
from orchestrator.store import JobFolder
from orchestrator.store.inventory import FolderFacts, FolderKind, look_at

RunJob = Callable[[Prepared], Awaitable[Report]]
SETTLED_AT_ONCE = 4
REMOVED_AT_ONCE = 4

_REPLIES = {
    CancelReply.CANCELLED: "cancelled",
    CancelReply.REQUESTED: "cancel requested",
    CancelReply.ENDED: "had ended meanwhile",
    CancelReply.GONE: "was deleted meanwhile",
}


@dataclass(frozen=True)
class Done:
    """What became of a finding; `ok` is False when it is still to be done."""

    finding: Finding
    ok: bool
    said: str


async def sweep(
    survey: Survey, gateway: Gateway, leftovers: Leftovers, *, settings: Settings, run: RunJob, who: str
) -> list[Done]:
    """Carry out a survey; what cannot be done is said and stops nothing else.

    Args:
        run: Runs a job that is ready to its report.
        who: Who cleans up, for the stop records.
    """
    done: list[Done] = []
    many = asyncio.Semaphore(SETTLED_AT_ONCE)

    async def settled(finding: Finding) -> Done:
        async with many:
            return await _guarded(finding, _settle(finding, survey.root, gateway, leftovers, settings, run, who))

    done += await asyncio.gather(*(settled(finding) for finding in survey.of(Act.SETTLE)))
    done += await _cancel(survey.of(Act.CANCEL), gateway)
    few = asyncio.Semaphore(REMOVED_AT_ONCE)

    async def removed(finding: Finding) -> Done:
        async with few:
            return await _guarded(finding, asyncio.to_thread(_remove, finding, survey.root))

    return done + await asyncio.gather(*(removed(finding) for finding in survey.of(Act.REMOVE)))


async def _guarded(finding: Finding, work: Awaitable[str]) -> Done:
    try:
        return Done(finding, True, await work)
    except JobConflictError:
        return Done(finding, True, "left alone: somebody else took it over meanwhile")
    except Exception as e:  # noqa: BLE001 - trouble with one must not keep the others from being cleaned up
        kind = "" if isinstance(e, OrchestratorError) else f"{type(e).__name__}: "
        return Done(finding, False, f"not done: {kind}{e}")


# ------------------------------------------------------------------ settle


async def _settle(
    finding: Finding, root: str, gateway: Gateway, leftovers: Leftovers, settings: Settings, run: RunJob, who: str
) -> str:
    """Take a job over, stop it, and let it come to its report as any other."""
    facts = finding.folder
    assert facts is not None
    assert facts.record is not None
    record, folder = facts.record, JobFolder(facts.url)
    if await asyncio.to_thread(folder.read_report) is not None:
        return "left alone: it has a report meanwhile"
    spec = make_spec(**{**record.spec.get("job", {}), "job_id": record.job_id, "storage": root})
    target = await _target(spec, gateway, leftovers)
    prepared = await start_of(
        record, folder, spec, target, settings, None, resumed=True, after=facts.epoch, cleanup=who
    )  # fmt: skip
    reason = f"cleanup: {_because(finding)}"
    mode = StopMode.DRAIN if finding.drain else StopMode.CANCEL
    await asyncio.to_thread(folder.request_stop, StopRecord(mode, StopCause.CLEANED_UP, reason, who))
    if finding.run is not None:  # its page is where people look
        job = replace(prepared.job, page_run=finding.run.id, url=run_url(finding.run.id))
        prepared = replace(prepared, job=job)
    report = await run(prepared)
    left = report.batches.unconfirmed
    open_ends = f"; {left} child runs were not seen to end" if left else ""
    return f"settled: {report.items.succeeded:,} of {report.items.total:,} items succeeded{open_ends}"


def _because(finding: Finding) -> str:
    ago = span_text(finding.age or 0.0)
    ended = finding.run is not None and finding.run.phase.is_terminal
    return f"its parent run ended {ago} ago" if ended else f"its parent gave its last sign of life {ago} ago"


async def _target(spec: JobSpec, gateway: Gateway, leftovers: Leftovers) -> Target:
    """Where the job's child runs are; nothing will be submitted, so a deployment may be gone, and limits are no matter.

    Raises:
        EngineUnavailableError: Prefect cannot be asked.
    """
    deployments = {}
    for group, name in spec.deployments.items():
        try:
            deployments[group] = await gateway.find_deployment(name)
        except DeploymentNotFoundError:
            flow_name = name.partition("/")[0]
            # Without the flow there are no runs of it either; no flow has this id.
            flow_id = await leftovers.flow_id(flow_name) or str(uuid4())
            deployments[group] = Deployment("", name, flow_id, flow_name, None, None, None, {})
    return Target(deployments, Capacity(), spec.max_in_flight)


# ------------------------------------------------------------------ cancel, remove


async def _cancel(findings: Sequence[Finding], gateway: Gateway) -> list[Done]:
    runs = [finding.run.id for finding in findings if finding.run is not None]
    if not runs:
        return []
    try:
        replies = await gateway.request_cancel(runs)
    except EngineError as e:
        return [Done(finding, False, f"not done: {e}") for finding in findings]
    done = []
    for finding in findings:
        reply = replies.get(finding.run.id) if finding.run is not None else None
        said = "not done: Prefect did not take the request; the next cleanup asks again"
        done.append(Done(finding, reply is not None, _REPLIES[reply] if reply is not None else said))
    return done


def _remove(finding: Finding, root: str) -> str:
    """Remove a folder that is still what it was when it was looked at."""
    before = finding.folder
    assert before is not None
    now = look_at(root, before.name)
    if now.kind is FolderKind.FOREIGN:
        return "removed meanwhile"
    if not _is_same(before, now):
        return "left alone: it changed meanwhile"
    JobFolder(before.url).delete()
    return f"removed, {size_text(before.size)}"


def _is_same(before: FolderFacts, now: FolderFacts) -> bool:
    if before.kind is FolderKind.JOB and now.kind is FolderKind.REMAINS:
        return True  # somebody is removing it
    if before.record is not None and (now.record is None or now.record.nonce != before.record.nonce):
        return False
    return (now.kind, now.over, now.reason, now.newest) == (before.kind, before.over, before.reason, before.newest)
