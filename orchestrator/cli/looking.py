"""Commands that look at a job or tell it to stop, through its folder: `status stop report results`."""

from __future__ import annotations

import getpass
import socket
import time
from typing import Annotated, Any, Literal

from orchestrator.cli.jobs import all_jobs, open_job
from orchestrator.cli.options import OUTPUT, STOP, JobArgument, Json, Storage, flag
from orchestrator.cli.terminal import give, give_json, give_json_line, plain, say, table
from orchestrator.core.model import ItemOutcome, StopCause, StopMode, StopRecord
from orchestrator.core.report import Report
from orchestrator.errors import ConfigurationError, OrchestratorError
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, encode_json

Outcome = Literal["succeeded", "failed", "unknown", "not_started", "all"]


def status(job: JobArgument | None = None, /, *, storage: Storage = None, json: Json = False) -> int:
    """How a job is doing; without a job, all jobs of the storage, the newest first."""
    if job is None:
        return _list(storage, json)
    facts = job_status(open_job(job, storage), watch=True)
    if json:
        give_json(facts)
        return 0
    rows = [
        ("job", facts["job_id"]),
        ("state", facts["state"] + (f": {facts['reason']}" if facts["reason"] else "")),
        ("items", f"{facts['items']['total']:,}"),
        *((outcome.replace("_", " "), f"{n:,}") for outcome, n in facts["items"].items() if outcome != "total"),
        ("batches", f"{facts['batches']['ended']:,} of {facts['batches']['total']:,} ended"),
        ("deployment", facts["deployment"]),
        ("created", facts["created"]),
        ("folder", facts["storage"]),
    ]
    give("\n".join(f"{name:<12} {value}" for name, value in rows))
    return 0


def _list(storage: str | None, json: bool) -> int:
    found = [_status_or_damage(folder) for folder in all_jobs(storage)]
    if json:
        give_json(found)
    elif not found:
        say("no jobs here; --storage names another place")
    else:
        rows = [(f["job_id"], f["state"], f"{f['items']['total']:,}", f["deployment"], f["created"]) for f in found]
        give(table(rows, ("job", "state", "items", "deployment", "created")))
    return 0


def _status_or_damage(folder: JobFolder) -> dict[str, Any]:
    """One job of many: what is wrong with it must not hide the others."""
    try:
        return job_status(folder, watch=False)
    except OrchestratorError as e:
        record = folder.read_job()
        return {
            "job_id": record.job_id, "state": "damaged", "reason": str(e), "items": {"total": record.total},
            "deployment": _names(record.spec.get("job", {}).get("deployment")), "created": record.created,
            "batches": {"total": record.batches, "ended": 0}, "storage": folder.url,
        }  # fmt: skip


def job_status(folder: JobFolder, *, watch: bool) -> dict[str, Any]:
    """Facts about a job from its folder.

    Args:
        watch: Find out whether a parent that has not reported is alive, which takes two of its signs of life; without
            it such a job is `unfinished`.
    """
    record = folder.read_job()
    finished = folder.read_report()
    facts: dict[str, Any] = {
        "job_id": record.job_id,
        "state": "unfinished",
        "reason": "",
        "deployment": _names(record.spec.get("job", {}).get("deployment")),
        "created": record.created,
        "items": {"total": record.total},
        "batches": {"total": record.batches, "ended": 0},
        "storage": folder.url,
    }
    if finished is not None:
        report = Report.from_json(finished)
        counts = finished["items"]
        state = "completed with failures" if report.failed_by_rule else report.verdict.value
        facts.update(state=state, reason=report.headline, items=dict(counts))
        facts["batches"]["ended"] = record.batches - report.batches.not_submitted
        facts["report"] = report.to_json()
        return facts
    stop_record = folder.read_stop()
    if watch:
        attempts = folder.attempts()
        facts["batches"]["ended"] = sum(bool(found.ended) for found in attempts.values())
        so_far = [folder.counts_so_far(batch, found) for batch, found in attempts.items()]
        facts["items"].update(succeeded=sum(c.succeeded for c in so_far), failed=sum(c.failed for c in so_far))
        alive = parent_is_alive(folder)
        facts["state"] = ("stopping" if stop_record else "running") if alive else "interrupted"
        if not alive:
            facts["reason"] = (
                f"its parent run gives no sign of life; `orchestrator resume {record.job_id}` goes on with it"
            )
    if stop_record is not None:
        facts["reason"] = "; ".join(filter(None, [f"stop asked for: {stop_record.reason}", facts["reason"]]))
    return facts


def parent_is_alive(folder: JobFolder) -> bool:
    """Whether the parent's sign of life changes within two of its intervals."""
    first = folder.read_lease()
    end = time.monotonic() + 2 * Settings().beat_seconds + 1
    while time.monotonic() < end:
        if folder.read_lease() != first or folder.read_report() is not None:
            return True
        time.sleep(0.25)
    return False


def _names(deployment: object) -> str:
    return ", ".join(str(v) for v in deployment.values()) if isinstance(deployment, dict) else str(deployment or "-")


def stop(
    job: JobArgument,
    /,
    *,
    drain: Annotated[
        bool, flag("--drain", "Let child runs in flight finish their batch instead of cancelling them.", group=STOP)
    ] = False,
    reason: Annotated[str, flag("--reason", "Why; shown to everybody who looks at the job.", group=STOP)] = "",
    wait: Annotated[
        float, flag("--wait", "Seconds to wait for the job's report.", group=OUTPUT, env="ORCHESTRATOR_STOP_WAIT")
    ] = 0,
    storage: Storage = None,
    json: Json = False,
) -> int:
    """Stop a job: nothing more is started, and child runs in flight are cancelled.

    Works through the job's folder, so it holds even while Prefect or the parent run is away.
    """
    folder = open_job(job, storage)
    if (finished := folder.read_report()) is not None:
        raise ConfigurationError(f"job {job!r} is over ({finished.get('verdict')}); there is nothing to stop")
    mode = StopMode.DRAIN if drain else StopMode.CANCEL
    who = f"{getpass.getuser()} on {socket.gethostname()}"
    record = StopRecord(mode, StopCause.REQUESTED, reason or f"stopped by {who}", f"command line, {who}")
    force = folder.request_stop(record)
    end = time.monotonic() + wait
    while (finished := folder.read_report()) is None and time.monotonic() < end:
        time.sleep(0.25)
    if json:
        said = {"job_id": job, "mode": force.mode.value, "reason": force.reason, "who": force.who}
        give_json(said | {"report": Report.from_json(finished).to_json() if finished else None})
        return 0
    if force != record:
        say(f"a stop was already in force: {force.reason} ({force.mode.value}, {force.who})")
    if finished is not None:
        give(Report.from_json(finished).headline)
    else:
        doing = "let finish" if force.mode is StopMode.DRAIN else "cancelled"
        give(f"stop requested: no item starts any more, child runs in flight are {doing}; `orchestrator status {job}`")
    return 0


def report(job: JobArgument, /, *, storage: Storage = None, json: Json = False) -> int:
    """The report of a finished job. Ends with the job's own exit code."""
    folder = open_job(job, storage)
    data = folder.read_report()
    if data is None:
        raise ConfigurationError(
            f"job {job!r} has no report yet; `orchestrator status {job}` says how it is doing, "
            f"`orchestrator resume {job}` finishes one that was interrupted"
        )
    found = Report.from_json(data)
    give_report(found, json)
    return found.exit_code


def give_report(found: Report, json: bool) -> None:
    """A report on stdout: as JSON, or for people."""
    if json:
        give_json(found.to_json())
        return
    n, switch = found.items, found.kill_switch
    title = "completed, but failed by rule" if found.failed_by_rule else found.verdict.value
    lines = [
        f"job {found.job_id}: {title}",
        f"  {found.headline}",
        f"  items: {n.total:,} = {n.succeeded:,} succeeded + {n.failed:,} failed + {n.unknown:,} unknown"
        f" + {n.not_started:,} not started",
        "  batches: "
        + ", ".join(
            f"{count:,} {name.replace('_', ' ')}"
            for name in ("completed", "failed", "crashed", "cancelled", "not_submitted", "unconfirmed")
            if (count := getattr(found.batches, name))
        )
        + f" (of {found.batches.total:,}, at most {found.max_in_flight_seen} at once, {found.seconds:.1f} s)",
    ]
    if switch.tripped:
        numbers = ", ".join(f"{name} = {value:g}" for name, value in switch.at.items())
        lines.append(f"  kill switch: {switch.clause}" + (f" ({numbers})" if numbers else ""))
    if switch.first_failure:
        f = switch.first_failure
        lines.append(f"  first failure: item {f.index} ({f.key}): {f.type}: {f.text}")
    lines += [f"  {e.count:,} x {e.type}" + (f", e.g. {e.example}" if e.example else "") for e in found.errors]
    lines += [f"  note: {note}" for note in found.notes]
    lines.append(f"  folder: {found.storage}")
    if found.url:
        lines.append(f"  page: {found.url}")
    give("\n".join(lines))


def results(
    job: JobArgument,
    /,
    *,
    outcome: Annotated[
        Outcome,
        flag("--outcome", "Which items: succeeded, failed, unknown, not_started or all.", group=OUTPUT),
    ] = "succeeded",
    limit: Annotated[int | None, flag("--limit", "At most so many items.", group=OUTPUT)] = None,
    storage: Storage = None,
    json: Annotated[bool, flag("--json", "Print JSON Lines: one object per item.", group=OUTPUT)] = False,
) -> int:
    """How each item ended, with its result or its error, in input order; also while the job runs."""
    folder = open_job(job, storage)
    only = None if outcome == "all" else {ItemOutcome(outcome)}
    over = folder.read_report() is not None
    for number, record in enumerate(folder.outcomes(only)):
        if limit is not None and number >= limit:
            break
        # Of a job that goes on, what has no outcome yet may still get one.
        ended = record.outcome in (ItemOutcome.SUCCEEDED, ItemOutcome.FAILED)
        word = record.outcome.value if ended or over else "pending"
        if json:
            error = {"type": record.error_type, "text": record.error_text} if record.error_type else None
            give_json_line(
                {
                    "index": record.index,
                    "key": record.key,
                    "outcome": word,
                    "result": record.result,
                    "error": error,
                    "tries": record.tries,
                    "seconds": record.seconds,
                    "batch": record.batch,
                }
            )
        else:
            what = (
                f"{record.error_type}: {record.error_text}"
                if record.error_type
                else encode_json(record.result).decode()
            )
            give("\t".join(plain(part) for part in (record.key, word, what if ended else "")))
    return 0


def unpaused(job: str, storage: str | None, json: bool) -> bool:
    """Let a paused job go on; True when its parent lives and nothing else is to be done."""
    folder = open_job(job, storage)
    wishes = [wish["paused"] for _, wish in folder.read_controls() if isinstance(wish.get("paused"), bool)]
    if not wishes or not wishes[-1] or folder.read_report() is not None:
        return False
    folder.write_control({"paused": False})
    if not parent_is_alive(folder):
        return False
    if json:
        give_json({"job_id": job, "paused": False})
    else:
        give(f"job {job} goes on")
    return True
