"""`cleanup-jobs`: what died jobs left behind, settled, cancelled and removed; as a flow, and for the command line."""

from __future__ import annotations

import getpass
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from prefect import State, flow
from prefect.states import Completed, Failed

from orchestrator.core.report import Report
from orchestrator.engine.context import outermost_run, run_logger
from orchestrator.engine.leftovers import PrefectLeftovers
from orchestrator.engine.pace import Pace
from orchestrator.engine.parent import PrefectGateway
from orchestrator.errors import ConfigurationError, EngineError
from orchestrator.flows.calling import Call
from orchestrator.flows.prepare import Prepared, storage_root
from orchestrator.flows.spans import parse_span, size_text, span_text
from orchestrator.flows.survey import Act, Finding, Rules, Survey, survey
from orchestrator.flows.sweep import Done, sweep
from orchestrator.flows.waiting import run_async
from orchestrator.settings import Settings
from orchestrator.store import SourcePolicy

NEVER = "never"
PAGE_KEY = "cleanup"
_PAGE_ROWS = 500


def read_rules(older_than: str, settle_after: str, settings: Settings, *, allow_all: bool = False) -> Rules:
    """The rules as people write them.

    Args:
        allow_all: An age of 0, which removes every job that is over, is meant.

    Raises:
        ConfigurationError: one is no span of time; or 0 where that is not allowed.
    """
    age = None if older_than.strip().lower() in ("", NEVER) else parse_span(older_than, "older_than")
    if age == 0 and not allow_all:
        raise ConfigurationError(
            "0 removes the folder of every job that is over, with its report and its results", field="older_than"
        )
    return Rules(age, parse_span(settle_after, "settle_after"), settings.beat_seconds)


def pace_of(settings: Settings) -> Pace:
    """What one cleanup may ask of Prefect, in all that it does."""
    return Pace(settings.max_requests_per_minute, say=run_logger().warning)


@asynccontextmanager
async def doors(settings: Settings, pace: Pace) -> AsyncIterator[tuple[PrefectGateway, PrefectLeftovers]]:
    """The two doors to Prefect that cleanup needs, closed at the end."""
    parent = outermost_run()
    gateway = PrefectGateway(
        masked_env=settings.masked_env,
        parent=parent.id if parent else None,
        pace=pace,
    )
    leftovers = PrefectLeftovers(settings.masked_env, pace)
    try:
        yield gateway, leftovers
    finally:
        await leftovers.close()
        await gateway.close()


async def look_around(root: str, rules: Rules, settings: Settings, pace: Pace | None = None) -> Survey:
    """What there is to clean up; nothing is touched.

    Args:
        pace: See `pace_of`.

    Raises:
        StoreUnavailableError: the storage cannot be listed.
    """
    async with doors(settings, pace or pace_of(settings)) as (gateway, leftovers):
        return await survey(root, rules, gateway, leftovers)


async def clean_up(found: Survey, settings: Settings, pace: Pace | None = None) -> list[Done]:
    """Do what a survey found; see `look_around`."""
    run = outermost_run()
    who = f"cleanup run {run.name}" if run else f"orchestrator cleanup, {getpass.getuser()} on {socket.gethostname()}"

    shared = pace or pace_of(settings)
    shared.share()  # each job that is settled runs in a loop of its own

    async def run_job(prepared: Prepared) -> Report:
        return await run_async(Call(None, settings, None, run_logger(), None, SourcePolicy(), shared), prepared)

    async with doors(settings, shared) as (gateway, leftovers):
        return await sweep(found, gateway, leftovers, settings=settings, run=run_job, who=who)


# ------------------------------------------------------------------ words


def summary(found: Survey, done: Sequence[Done] | None = None) -> str:
    """One line: what is to do, or what was done."""
    if done is None:
        counts = [(found.of(act), act.value) for act in Act if act is not Act.LEAVE]
        said = ", ".join(f"{len(these)} to {word}" for these, word in counts if these)
        return f"{found.folders:,} job{'' if found.folders == 1 else 's'}; {said or 'nothing to clean up now'}"
    failed = sum(not d.ok for d in done)
    return f"{len(done) - failed} cleaned up" + (f", {failed} not done" if failed else "")


def cells(finding: Finding) -> tuple[str, str, str, str, str]:
    """A finding as a row: what to do, about what, why, age, size."""
    return (
        "leave alone" if finding.act is Act.LEAVE else finding.act.value,
        finding.subject,
        finding.why,
        "-" if finding.age is None else span_text(finding.age),
        "-" if finding.size is None else size_text(finding.size),
    )


def page(found: Survey, done: Sequence[Done] | None, root: str) -> str:
    """The cleanup as markdown."""
    lines = ["# Cleanup", "", f"{summary(found, done)}, in `{root}`.", ""]
    if found.away is not None:
        lines += [f"Prefect could not be asked, only old folders were looked at: {_cell(found.away)}", ""]
    said = {id(d.finding): d.said for d in done or ()}
    if found.findings:
        lines += ["| | what | why | age | size | done |", "|---|---|---|---|---|---|"]
    for finding in found.findings[:_PAGE_ROWS]:
        row = (*cells(finding), said.get(id(finding), ""))
        lines.append("| " + " | ".join(_cell(text) for text in row) + " |")
    if (more := len(found.findings) - _PAGE_ROWS) > 0:
        lines += ["", f"and {more:,} more"]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Names of runs and folders may say anything; on the page they are text."""
    flat = " ".join(text.split())[:500]
    return "".join(f"\\{c}" if c in "|\\`*_<>[]" else c for c in flat)


def to_json(found: Survey, done: Sequence[Done] | None) -> dict[str, Any]:
    """The cleanup for programs."""
    said = {id(d.finding): {"ok": d.ok, "said": d.said} for d in done or ()}
    return {
        "storage": found.root,
        "jobs": found.folders,
        "prefect_away": found.away,
        "acted": done is not None,
        "findings": [finding.to_json() | {"done": said.get(id(finding))} for finding in found.findings],
    }


# ------------------------------------------------------------------ the flow


@flow(
    name="cleanup-jobs",
    description="Settles jobs whose parent is over, cancels child runs that they left, removes old job folders.",
    # Prefect's own refusal would be a traceback; ours is one line.
    validate_parameters=False,
)
async def cleanup_flow(
    dry_run: bool = True, older_than: str = "30d", settle_after: str = "1h", storage: str = ""
) -> State[Any]:
    """Clean up after jobs that died, and remove the folders of old ones.

    Args:
        dry_run: List what would be done, and do nothing.
        older_than: Remove the folders of jobs that are over for longer: 12h, 30d, 8w, or never.
        settle_after: Settle a job so long after its parent was over. Until then it can be resumed, afterwards its items can be retried.
        storage: Where the job folders lie; empty for the setting of whoever runs this.
    """  # noqa: E501 - Prefect's form breaks a description where its line breaks
    settings, log = Settings(), run_logger()
    try:
        rules = read_rules(str(older_than), str(settle_after), settings)
        root, pace = storage_root(storage or None, settings), pace_of(settings)
        found = await look_around(root, rules, settings, pace)
    except ConfigurationError as e:
        log.error("Refused: %s", e)
        return Failed(message=str(e), name="Refused")
    done = None if dry_run else await clean_up(found, settings, pace)
    for line in done or ():
        level = logging.INFO if line.ok else logging.ERROR
        log.log(level, "%s: %s (%s)", line.finding.subject, line.said, line.finding.why)
    run = outermost_run()
    try:
        async with doors(settings, pace) as (_, leftovers):
            await leftovers.publish(run.id if run else None, PAGE_KEY, page(found, done, root))
    except EngineError as e:
        log.warning("The page could not be written: %s", e)
    if found.away is not None:
        return Failed(message=f"Prefect could not be asked: {found.away}")
    said = summary(found, done)
    if done is not None and not all(d.ok for d in done):
        return Failed(message=said)
    return Completed(message=said)
