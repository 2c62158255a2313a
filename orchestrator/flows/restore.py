"""Taking a job over: what its folder and Prefect say of the batches that an earlier parent asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from orchestrator.core.machine import events as ev
from orchestrator.core.model import EndReason, Phase, Reading, StopMode
from orchestrator.engine.gateway import Gateway, Run
from orchestrator.engine.pace import Need, asking
from orchestrator.errors import StoreUnavailableError
from orchestrator.reactor import Job
from orchestrator.reactor.boundaries import Boundary, passed
from orchestrator.reactor.perform import read_attempt
from orchestrator.store import AttemptFiles
from orchestrator.store.journal import readings_before

P = ParamSpec("P")
T = TypeVar("T")
PAUSES = (0.2, 0.5, 1.0, 2.0)  # seconds, between two tries of a question that the job folder did not answer
ANSWER_SECONDS = 2.0  # that the last creation of a parent, which does not know of its successor yet, may take
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
    stop = await _patiently(job.folder.read_stop)
    if stop is not None and stop.mode is StopMode.DRAIN:
        # The parent before, if it lives, creates runs until its next look: nobody would ask for a run that is created
        # after ours. (Without a stop the next creation by that key finds it; a cancel ends it before its first item.)
        await asyncio.sleep(job.times.fence + ANSWER_SECONDS)
    files = await _patiently(job.folder.attempts)
    passed(Boundary.RESTORE_LISTED)
    known = await _patiently(_recorded, job, files)
    stops = stop is not None
    highest = max(files, default=-1)
    found: list[ev.Event] = []
    with asking(Need.CANCEL if stops else Need.READ):  # whom to cancel is found here
        for start in range(0, len(job.batches), PAGE):
            page = range(start, min(start + PAGE, len(job.batches)))
            events = await _restore_page(job, gateway, page, files, known, stops)
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
    return {batch: reading for batch, reading in readings.items() if _is_certain(job, batch, reading)}


def _is_certain(job: Job, batch: int, reading: Reading) -> bool:
    """Whether that is what a last word alone says of its batch, and would say again."""
    count = job.batches[batch].count
    numbers = (reading.counts.succeeded, reading.counts.failed, reading.unknown, reading.not_started)
    alone = reading.reason is not EndReason.REFUSED and reading.suspect is None and reading.damaged == 0
    if job.pass_items.by_value:  # what settled nothing leaves the word to earlier attempts
        alone = alone and reading.counts.settled == count
    return reading.ended and alone and min(numbers) >= 0 and sum(numbers) == count


async def _restore_page(
    job: Job,
    gateway: Gateway,
    page: range,
    files: Mapping[int, AttemptFiles],
    known: Mapping[int, Reading],
    stops: bool,
) -> list[ev.Event]:
    over = {b: k for b in page if b in files and (k := _newest_over(files[b])) is not None}
    current = {b: over.get(b, -1) + 1 for b in page}
    wanted = {b: job.key(b, k) for b, k in current.items()}
    readings = {b: reading for b, reading in known.items() if b in over}
    if not job.pass_items.by_value:
        readings |= await _read(job, {b: (k, None) for b, k in over.items() if b not in readings})
    # How an attempt ended that leaves items to do decides whether they are tried again: cancelled by hand stays so.
    unfinished = {
        b: job.key(b, k)
        for b, k in over.items()
        if b not in readings or readings[b].counts.settled < job.batches[b].count
    }
    # It said its last word, and nobody recorded since that its run was read as over: until then it holds its place.
    unread = {b: job.key(b, k) for b, k in over.items() if b not in known and k in files[b].ended - files[b].revoked}
    asked = dict.fromkeys([*wanted.values(), *unfinished.values(), *unread.values()])
    runs = await _find(job, gateway, page, list(asked))
    passed(Boundary.RESTORE_ASKED)
    for b, key in unread.items():
        if (run := runs.get(key)) is not None and _phase(run) is None and wanted[b] not in runs:
            current[b], wanted[b] = over.pop(b), key
            readings.pop(b, None)
            if current[b]:
                over[b] = current[b] - 1
    ended = {b: _phase(runs.get(key)) for b, key in unfinished.items()}
    readings |= await _read(job, {b: (k, ended.get(b)) for b, k in over.items() if b not in readings})
    # It came as far as its ledger and Prefect does not know it any more: what it did counts, and it is over.
    deleted = {b: k for b, k in current.items() if b in files and k in files[b].started and wanted[b] not in runs}
    readings |= await _read(job, {b: (k, None) for b, k in deleted.items()})
    over |= deleted
    recalled = await _recalled(job, [k for k in (*over.items(), *current.items()) if _has_mark(files, *k)])
    events: list[ev.Event] = []
    for b, attempt in sorted(over.items()):  # in whichever way each was found to be over
        # A next attempt exists: however this one ended, it was tried again.
        phase, left = None if wanted[b] in runs or b in deleted else ended.get(b), None
        run = runs.get(unfinished.get(b, "")) if stops and wanted[b] not in runs and b not in deleted else None
        if run is not None and not run.phase.is_terminal:
            phase, left = run.phase, run.id
        given_up, _ = recalled.get((b, attempt), (None, False))
        events.append(ev.Restored(b, attempt, readings[b], phase, given_up, left))
    for b, key in wanted.items():
        if (run := runs.get(key)) is not None:
            events.append(ev.Submitted(b, current[b], run.id, run.phase, run.started))
            if (why := recalled.get((b, current[b]))) is not None:
                events.append(ev.Recalled(b, current[b], *why))
    return events


def _has_mark(files: Mapping[int, AttemptFiles], batch: int, attempt: int) -> bool:
    return batch in files and attempt in files[batch].recalled


async def _recalled(job: Job, attempts: Sequence[tuple[int, int]]) -> dict[tuple[int, int], tuple[str, bool]]:
    """Why an earlier parent wanted the runs of these attempts to end, and whether for their silence."""
    said = await asyncio.gather(*(_patiently(job.folder.read_recalled, b, k) for b, k in attempts))
    return {attempt: why for attempt, why in zip(attempts, said, strict=True) if why is not None}


async def _read(job: Job, wanted: Mapping[int, tuple[int, Phase | None]]) -> dict[int, Reading]:
    """What the ledgers say of attempts, by batch; each with its terminal state as far as that is known."""
    read = (_patiently(read_attempt, job, b, attempt, phase) for b, (attempt, phase) in wanted.items())
    return dict(zip(wanted, await asyncio.gather(*read), strict=True))


async def _patiently(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Ask the job folder off the loop, a few times: of very many questions one that fails must not end the others."""
    for pause in PAUSES:
        try:
            return await asyncio.to_thread(function, *args, **kwargs)
        except StoreUnavailableError:
            await asyncio.sleep(pause)
    return await asyncio.to_thread(function, *args, **kwargs)


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
    """Its terminal state, read or certain: from Cancelling only Cancelled is accepted."""
    if run is not None and run.phase is Phase.CANCELLING:
        return Phase.CANCELLED
    return run.phase if run is not None and run.phase.is_terminal else None
