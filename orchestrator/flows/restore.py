"""Taking a job over: what its folder and Prefect say of the batches that an earlier parent asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from orchestrator.core.machine import events as ev
from orchestrator.core.model import Phase, Reading
from orchestrator.engine.gateway import Gateway, Run
from orchestrator.reactor import Job
from orchestrator.reactor.boundaries import Boundary, passed
from orchestrator.reactor.perform import read_attempt
from orchestrator.store import AttemptFiles
from orchestrator.store.journal import readings_before

PAGE = 200  # keys asked for at once, as many as Prefect answers in one request


async def restore(job: Job, gateway: Gateway) -> list[ev.Event]:
    """The events that bring a fresh machine to where the job is.

    One recursive listing of the folder, one reading per batch that left a trace (from what an earlier parent recorded,
    where that is beyond doubt), and questions by key in pages: batches are submitted in order and an attempt is revoked
    before the next one exists, so the key of each batch's newest possible attempt is enough, and the first page without
    any trace or run ends the search.

    Raises:
        EngineUnavailableError: Prefect cannot be asked.
    """
    files = await asyncio.to_thread(job.folder.attempts)
    passed(Boundary.RESTORE_LISTED)
    known = await asyncio.to_thread(_recorded, job, files)
    highest = max(files, default=-1)
    found: list[ev.Event] = []
    for start in range(0, len(job.batches), PAGE):
        page = range(start, min(start + PAGE, len(job.batches)))
        events = await _restore_page(job, gateway, page, files, known)
        if not events and start > highest:
            break
        found += events
    passed(Boundary.RESTORE_READ)
    return found


def _recorded(job: Job, files: Mapping[int, AttemptFiles]) -> dict[int, Reading]:
    """What earlier parents read of attempts that ended by their own word, by batch.

    Such a reading cannot change: the last word is written once, and only attempts without one are given up. Of any
    other, and of one that does not fit what is listed, the folder is asked again.
    """
    wanted = {}
    for batch, found in files.items():
        newest = _newest_over(found)
        if newest is not None and batch < len(job.batches) and newest in found.ended - found.revoked:
            wanted[batch] = newest
    readings = readings_before(job.folder.store, job.epoch, job.nonce, wanted) if wanted else {}
    return {batch: reading for batch, reading in readings.items() if _fits(reading, job.batches[batch].count)}


def _fits(reading: Reading, count: int) -> bool:
    """Whether that can be what a last word said of a batch of so many items."""
    numbers = (reading.counts.succeeded, reading.counts.failed, reading.unknown, reading.not_started)
    return reading.ended and reading.suspect is None and min(numbers) >= 0 and sum(numbers) == count


async def _restore_page(
    job: Job, gateway: Gateway, page: range, files: Mapping[int, AttemptFiles], known: Mapping[int, Reading]
) -> list[ev.Event]:
    over = {b: _newest_over(files[b]) for b in page if b in files}
    current = {b: (attempt if attempt is not None else -1) + 1 for b, attempt in over.items()}
    wanted = {b: job.key(b, current.get(b, 0)) for b in page}
    # How a revoked attempt ended decides whether its batch may be tried again: cancelled by hand stays cancelled.
    lost = {
        b: job.key(b, attempt)
        for b, attempt in over.items()
        if attempt is not None and (attempt not in files[b].ended or job.pass_items.by_value)
    }
    runs = await _find(job, gateway, page, [*wanted.values(), *lost.values()])
    passed(Boundary.RESTORE_ASKED)
    events: list[ev.Event] = []
    restored = [(b, attempt) for b, attempt in over.items() if attempt is not None]
    unread = [(b, attempt) for b, attempt in restored if b not in known]
    read = await asyncio.gather(
        *(asyncio.to_thread(read_attempt, job, b, k, _phase(runs.get(lost.get(b, "")))) for b, k in unread)
    )
    readings = {**known, **{b: reading for (b, _), reading in zip(unread, read, strict=True)}}
    for b, attempt in restored:
        reading = readings[b]
        # A next attempt exists: however this one ended, it was tried again.
        ended = None if wanted[b] in runs else _phase(runs.get(lost.get(b, "")))
        events.append(ev.Restored(b, attempt, reading, ended))
    for b, key in wanted.items():
        if (run := runs.get(key)) is not None:
            events.append(ev.Submitted(b, current.get(b, 0), run.id, run.phase, run.started))
    return events


async def _find(job: Job, gateway: Gateway, page: range, keys: list[str]) -> dict[str, Run]:
    """Runs by key, asked of every flow that the page's batches belong to."""
    found: dict[str, Run] = {}
    for flow_id in {job.deployment_of(b).flow_id for b in page}:
        found.update(await gateway.find_by_keys(flow_id, keys))
    return found


def _newest_over(files: AttemptFiles) -> int | None:
    """The newest attempt that is known to be over: it wrote its end, or it was revoked."""
    over = files.ended | files.revoked
    return max(over) if over else None


def _phase(run: Run | None) -> Phase | None:
    return run.phase if run is not None and run.phase.is_terminal else None
