"""Commands that look at a job or tell it to stop, through its folder: `status stop report results`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any, Literal

from orchestrator.cli.jobs import all_jobs, open_job, standing_json, storage_root, who
from orchestrator.cli.options import OUTPUT, STOP, JobArgument, Json, Reason, Storage, flag
from orchestrator.cli.terminal import give, give_json, give_json_line, masked, plain, say, table
from orchestrator.core.chain import Link
from orchestrator.core.model import ItemOutcome, StopMode
from orchestrator.core.report import BatchCounts, ItemCounts, Report
from orchestrator.errors import ConfigurationError, OrchestratorError
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, encode_json
from orchestrator.store.chains import Chain, follow
from orchestrator.store.controls import ask_to_stop, change, parent_is_alive, standing
from orchestrator.store.deadletter import write_dead_letter
from orchestrator.store.inventory import FolderFacts
from orchestrator.store.retries import LEFT, living_retries

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
        *([("at once", f"at most {facts['max_in_flight']:,} child runs")] if "max_in_flight" in facts else []),
        *(("changed", change) for change in facts.get("changes", ())),
        *([("retry of", facts["retry_of"])] if facts["retry_of"] else []),
        *(("retried by", later) for later in facts["retried_by"]),
        ("folder", facts["storage"]),
    ]
    give("\n".join(f"{name:<12} {value}" for name, value in rows))
    return 0


def _list(storage: str | None, json: bool) -> int:
    found = [_status_or_damage(facts) for facts in all_jobs(storage)]
    if json:
        give_json(found)
    elif not found:
        say(f"no jobs in {storage_root(storage)}; --storage, ORCHESTRATOR_STORAGE or PREFECT_HOME name another place")
    else:
        rows = [(f["job_id"], f["state"], f"{f['items']['total']:,}", f["deployment"], f["created"]) for f in found]
        give(table(rows, ("job", "state", "items", "deployment", "created")))
    return 0


def _status_or_damage(seen: FolderFacts) -> dict[str, Any]:
    """One job of many: what is wrong with it must not hide the others, and nothing is waited for."""
    folder = JobFolder(seen.url)
    try:
        silence = None if seen.sign_of_life is None else time.time() - seen.sign_of_life
        return job_status(folder, watch=False, alive=None if silence is None else silence <= seen.lease_seconds)
    except OrchestratorError as e:
        record = folder.read_job()
        return {
            "job_id": record.job_id, "state": "damaged", "reason": str(e), "items": {"total": record.total},
            "deployment": _names(record.spec.get("job", {}).get("deployment")), "created": record.created,
            "batches": {"total": record.batches, "ended": 0}, "storage": folder.url,
        }  # fmt: skip


def job_status(folder: JobFolder, *, watch: bool, alive: bool | None = None) -> dict[str, Any]:
    """Facts about a job from its folder.

    Args:
        watch: Count what was done so far, and find out whether a parent that has not reported is alive, which takes two
            of its signs of life.
        alive: Whether it is, as far as can be told at once; where even that is unknown the job is `unfinished`.
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
        **links(folder),
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
    now = standing(folder)
    facts.update(standing_json(now))
    if watch:
        attempts = folder.attempts()
        facts["batches"]["ended"] = sum(bool(found.ended) for found in attempts.values())
        so_far = [folder.counts_so_far(batch, found) for batch, found in attempts.items()]
        facts["items"].update(succeeded=sum(c.succeeded for c in so_far), failed=sum(c.failed for c in so_far))
        alive = parent_is_alive(folder, Settings().beat_seconds)
    if alive is not None:
        going_on = "stopping" if stop_record else "paused" if now.paused else "running"
        facts["state"] = going_on if alive else "interrupted"
        if not alive:
            then = "writes its report, and starts nothing" if stop_record else "goes on with it"
            facts["reason"] = f"its parent run gives no sign of life; `orchestrator resume {record.job_id}` {then}"
    said = (
        [f"stop asked for: {stop_record.reason} ({stop_record.mode.value}, {stop_record.who})"] if stop_record else []
    )
    if now.paused and stop_record is None:
        said.append(f"paused {now.paused_by}".strip() + f"; `orchestrator resume {record.job_id}` goes on")
    facts["reason"] = "; ".join(filter(None, [*said, facts["reason"]]))
    return facts


def links(folder: JobFolder) -> dict[str, Any]:
    """The job whose items this one ran again, and those that ran again what it left."""
    return {"retry_of": folder.read_job().retry_of, "retried_by": [retry.job_id for retry in living_retries(folder)]}


def _names(deployment: object) -> str:
    return ", ".join(str(v) for v in deployment.values()) if isinstance(deployment, dict) else str(deployment or "-")


def stop(
    job: JobArgument,
    /,
    *,
    drain: Annotated[
        bool, flag("--drain", "Let child runs in flight finish their batch instead of cancelling them.", group=STOP)
    ] = False,
    cancel: Annotated[
        bool, flag("--cancel", "Cancel child runs in flight (the default), after a drain as well.", group=STOP)
    ] = False,
    reason: Reason = "",
    wait: Annotated[
        float, flag("--wait", "Seconds to wait for the job's report.", group=OUTPUT, env="ORCHESTRATOR_STOP_WAIT")
    ] = 0,
    storage: Storage = None,
    json: Json = False,
) -> int:
    """Stop a job: nothing more is started, and child runs in flight are cancelled.

    Works through the job's folder, so it holds even while Prefect or the parent run is away. A stop can become
    stronger (`--drain`, then `--cancel`), never weaker.
    """
    if drain and cancel:
        raise ConfigurationError("one of --drain and --cancel: child runs in flight finish, or are cancelled")
    folder = open_job(job, storage)
    mode: Literal["drain", "cancel"] = "drain" if drain else "cancel"
    before = folder.read_stop()
    force = ask_to_stop(folder, mode, f"command line, {who()}", masked(reason))
    end = time.monotonic() + wait
    while (finished := folder.read_report()) is None and time.monotonic() < end:
        time.sleep(0.25)
    if json:
        said = {"job_id": job, "mode": force.mode.value, "reason": force.reason, "who": force.who}
        give_json(said | {"report": Report.from_json(finished).to_json() if finished else None})
        return 0
    if before is not None:
        how = "was already in force" if force == before else "becomes stronger"
        say(f"a stop {how}: {before.reason} ({before.mode.value}, {before.who})")
    if finished is not None:
        give(Report.from_json(finished).headline)
    else:
        doing = "let finish" if force.mode is StopMode.DRAIN else "cancelled"
        give(f"stop requested: no item starts any more, child runs in flight are {doing}; `orchestrator status {job}`")
    return 0


def report(
    job: JobArgument,
    /,
    *,
    chain: Annotated[
        bool,
        flag("--chain", "What became of the first job's items in the end, over all that ran them again.", group=OUTPUT),
    ] = False,
    storage: Storage = None,
    json: Json = False,
) -> int:
    """The report of a finished job. Ends with the job's own exit code."""
    folder = open_job(job, storage)
    if chain:
        return _give_chain(follow(folder), json)
    data = folder.read_report()
    if data is None:
        raise ConfigurationError(
            f"job {job!r} has no report yet; `orchestrator status {job}` says how it is doing, "
            f"`orchestrator resume {job}` finishes one that was interrupted"
        )
    found = Report.from_json(data)
    give_report(found, json, [retry.job_id for retry in living_retries(folder)])
    return found.exit_code


def _give_chain(chain: Chain, json: bool) -> int:
    """The sum over a chain of jobs; ends with 0 when every item of the first one succeeded in the end."""
    n = chain.items
    if json:
        give_json({
            "first": chain.first.job_id, "items": asdict(n), "jobs": [_link_json(job) for job in chain.first.walk()],
            "running": chain.running, "gone": chain.gone,
        })  # fmt: skip
        return int(n.succeeded < n.total)
    lines = [f"job {chain.first.job_id} and what ran again of it:", f"  {_items(n)}"]
    for job in chain.first.walk():
        names = ", ".join(o.value.replace("_", " ") for o in ItemOutcome if o in job.only)
        took = f" ({job.total:,} {names} of {job.earlier})" if job.earlier else ""
        lines.append(f"  {job.job_id}{took}: {_items(job.counts) if job.counts else 'not over'}")
    if chain.running:
        lines.append("  items of a job that is not over count as they ended before it")
    if chain.gone:
        lines.append(f"  note: these items were left by job {chain.gone}, whose folder is gone")
    give("\n".join(lines))
    return int(n.succeeded < n.total)


def _link_json(job: Link) -> dict[str, Any]:
    items = asdict(job.counts) if job.counts else {"total": job.total}
    only = [o.value for o in ItemOutcome if o in job.only]
    return {"job_id": job.job_id, "retry_of": job.earlier, "only": only, "over": job.counts is not None, "items": items}


def _items(n: ItemCounts) -> str:
    return (
        f"items: {n.total:,} = {n.succeeded:,} succeeded + {n.failed:,} failed + {n.unknown:,} unknown"
        f" + {n.not_started:,} not started"
    )


def _batches(n: BatchCounts) -> str:
    names = ("completed", "failed", "crashed", "cancelled", "not_submitted", "unconfirmed")
    counted = [f"{count:,} {name.replace('_', ' ')}" for name in names if (count := getattr(n, name))]
    return ", ".join(counted) or "none"


def give_report(found: Report, json: bool, retried_by: Sequence[str] = ()) -> None:
    """A report on stdout: as JSON, or for people."""
    if json:
        give_json({**found.to_json(), "retried_by": list(retried_by)})
        return
    n, switch = found.items, found.kill_switch
    title = "completed, but failed by rule" if found.failed_by_rule else found.verdict.value
    lines = [
        f"job {found.job_id}: {title}",
        f"  {found.headline}",
        f"  {_items(n)}",
        f"  batches: {_batches(found.batches)} (of {found.batches.total:,}, "
        f"at most {found.max_in_flight_seen} at once, {found.seconds:.1f} s)",
    ]
    if switch.tripped:
        numbers = ", ".join(f"{name} = {value:g}" for name, value in switch.at.items())
        lines.append(f"  kill switch: {switch.clause}" + (f" ({numbers})" if numbers else ""))
    if switch.first_failure:
        f = switch.first_failure
        lines.append(f"  first failure: {f.item}: {f.type}: {f.text}")
    lines += [f"  {e.count:,} x {e.type}" + (f", e.g. {e.example}" if e.example else "") for e in found.errors]
    lines += [f"  note: {note}" for note in found.notes]
    if found.retry_of:
        lines.append(f"  runs again what job {found.retry_of} left; `report {found.job_id} --chain` sums up both")
    lines += [f"  what it left was run again by job {later}" for later in retried_by]
    lines.append(f"  folder: {found.storage}")
    if found.url:
        lines.append(f"  page: {found.url}")
    give("\n".join(lines))


def results(
    job: JobArgument,
    /,
    *,
    outcome: Annotated[
        Outcome | None,
        flag("--outcome", "Which items: succeeded (the default), failed, unknown, not_started or all.", group=OUTPUT),
    ] = None,
    limit: Annotated[int | None, flag("--limit", "At most so many items.", group=OUTPUT)] = None,
    dead_letter: Annotated[
        str | None,
        flag(
            "--dead-letter",
            "Write the items that did not succeed, with their errors, as JSON Lines to that file or URL (- for "
            "stdout); `--items FILE --select item --key key` runs them.",
            group=OUTPUT,
            allow_leading_hyphen=True,
        ),
    ] = None,
    storage: Storage = None,
    json: Annotated[bool, flag("--json", "Print JSON Lines: one object per item.", group=OUTPUT)] = False,
) -> int:
    """How each item ended, with its result or its error, in input order; also while the job runs."""
    folder = open_job(job, storage)
    if dead_letter is not None:
        written = write_dead_letter(folder, dead_letter, _left(outcome), limit)
        if dead_letter != "-":
            facts = {"job_id": job, "file": dead_letter, "items": written}
            give_json(facts) if json else give(f"{written:,} {'item' if written == 1 else 'items'} in {dead_letter}")
        return 0
    only = None if outcome == "all" else {ItemOutcome(outcome or "succeeded")}
    report = folder.read_report()
    over = report is not None
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
    if report is not None and outcome is None and not json:
        _say_what_is_not_shown(report)
    return 0


def _say_what_is_not_shown(report: Mapping[str, Any]) -> None:
    """Who asks for results after a failure looks for what failed, too."""
    with suppress(OrchestratorError):  # a report that cannot be read is told by `report`
        items = Report.from_json(report).items
        if left := items.total - items.succeeded:
            say(f"not shown: {left:,} {'item' if left == 1 else 'items'} that did not succeed (--outcome all)")


def _left(outcome: Outcome | None) -> tuple[ItemOutcome, ...]:
    if outcome is None:
        return LEFT
    return tuple(ItemOutcome) if outcome == "all" else (ItemOutcome(outcome),)


def unpaused(job: str, storage: str | None, json: bool) -> bool:
    """Let a paused job go on; True when its parent lives and nothing else is to be done."""
    folder = open_job(job, storage)
    if folder.read_report() is not None or folder.read_stop() is not None or not standing(folder).paused:
        return False
    told = change(folder, paused=False, who=who())
    if not parent_is_alive(folder, Settings().beat_seconds):
        return False
    if json:
        give_json({"job_id": job, "control": told.number, "said": told.said, **standing_json(told.standing)})
    else:
        give(f"job {job} goes on")
    return True
