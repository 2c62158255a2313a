"""Taking a job over from what earlier parents recorded: never anything else than the folder says, and quicker."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.machine import events as ev
from orchestrator.core.machine.wire import Header, Recorded
from orchestrator.core.model import Counts, EndReason, Phase, Reading
from orchestrator.engine.faults import Faults, Rates
from orchestrator.engine.gateway import Gateway, Run
from orchestrator.engine.memory import MemoryGateway, SimulatedEngine
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.flows.prepare import prepare, take_over
from orchestrator.flows.request import make_spec
from orchestrator.flows.restore import restore
from orchestrator.reactor import Job, Reactor, Recorder
from orchestrator.reactor.perform import Io
from orchestrator.settings import Settings
from orchestrator.store import EndRecord, Entry, JobFolder, as_source, encode_json, layout, open_store
from orchestrator.store.journal import JournalWriter, parents
from orchestrator.testing import DEPLOYMENT, SimulatedBatches
from tests.unit.reactor.jobs import prepared

logger = logging.getLogger(__name__)
SETTINGS = Settings(item_grace_seconds=1, fence_seconds=1)
RATES = Rates(unavailable=0.0, crash=0.2, delete=0.05, cancel=0.05, stuck_pending=0.0)
_numbers = itertools.count()


class Watched:
    """The job's store; counts what is read, and can hide what was recorded."""

    def __init__(self, store: Any, *, hidden: bool = False) -> None:
        self._store, self._hidden, self.gets = store, hidden, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes | None:
        self.gets += 1
        data: bytes | None = self._store.get(name, start, length)
        return data

    def list(self, prefix: str = "") -> list[Entry]:
        found: list[Entry] = self._store.list(prefix)
        return [] if self._hidden and prefix == layout.EVENTS else found


class Still(MemoryGateway):
    """A door behind which nothing moves any more: these runs, by key."""

    def __init__(self, runs: Mapping[str, Run]) -> None:
        super().__init__()
        self._runs = runs

    async def find_by_keys(self, flow_id: str, keys: Sequence[str]) -> Mapping[str, Run]:
        return {key: self._runs[key] for key in keys if key in self._runs}


async def stilled(job: Job, gateway: MemoryGateway) -> Still:
    """What the next parent would find behind that door now."""
    keys = [job.key(batch, attempt) for batch in range(len(job.batches)) for attempt in range(5)]
    runs: dict[str, Run] = {}
    for first in range(0, len(keys), 100):
        runs.update(await gateway.find_by_keys(job.deployment_of(0).flow_id, keys[first : first + 100]))
    return Still(runs)


def both(job: Job, gateway: Gateway) -> tuple[list[ev.Event], int, int]:
    """What a parent that takes over is told, with and without what was recorded: the same; and the reads of each."""
    found = []
    for hidden in (False, True):
        store = Watched(open_store(job.folder.url), hidden=hidden)
        events = asyncio.run(restore(replace(job, folder=JobFolder(store)), gateway))  # type: ignore[arg-type]
        found.append((events, store.gets))
    (fast, quick), (slow, long) = found
    assert decisive(job, fast) == decisive(job, slow)
    return fast, quick, long


def decisive(job: Job, events: list[ev.Event]) -> list[ev.Event]:
    """Without what decides nothing: how the run of a batch ended that left no item to do."""

    def bare(event: ev.Event) -> ev.Event:
        if isinstance(event, ev.Restored) and event.reading.counts.settled == job.batches[event.batch].count:
            return replace(event, phase=None)
        return event

    return [bare(event) for event in events]


def interrupted(storage: str, *, seed: int, after: float, items: int = 200) -> tuple[Job, Still]:
    """A job whose parent dies after so many seconds, as the next parent finds it."""

    async def whole() -> tuple[Job, Still]:
        children = SimulatedBatches(lambda n: 1 // (n % 5), seconds_per_item=0.4, fence_seconds=1, grace_seconds=1)
        engine = SimulatedEngine(children, faults=Faults(seed=seed, rates=RATES))
        gateway = MemoryGateway(engine=engine)
        spec = make_spec(
            deployment=DEPLOYMENT, batch_size=5, max_in_flight=4, kill_switch=None, job_id="j", storage=storage
        )
        first = await prepare(spec, as_source(range(items), storage=storage), gateway, settings=SETTINGS)
        reactor = Reactor(first.job, gateway, log=logger, io=Io(inline=True), recorder=Recorder(first.job))
        running = asyncio.ensure_future(reactor.run())
        await asyncio.sleep(after)
        assert not running.done(), running.exception()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.sleep(3)  # meanwhile children go on
        second = await take_over("j", storage, gateway, settings=SETTINGS)
        door = await stilled(second.job, gateway)
        await engine.shut_down()
        return second.job, door

    return run_virtually(whole())


@pytest.fixture(params=["memory", "local"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://restore-{next(_numbers)}" if request.param == "memory" else str(tmp_path / "jobs")


# ------------------------------------------------------------------ the same as the folder


@pytest.mark.parametrize(("seed", "after"), [(n, 4.0 + 3 * n) for n in range(8)])
def test_a_parent_that_takes_over_is_told_the_same_whether_events_were_recorded_or_not(storage, seed, after):
    fast, quick, long = both(*interrupted(storage, seed=seed, after=after))
    restored = [e for e in fast if isinstance(e, ev.Restored)]
    assert after < 8 or (len(restored) > 3 and quick < long)


def damages(data: bytes) -> dict[str, bytes]:
    """What may become of a journal."""
    lines = data.split(b"\n")
    middle = len(lines) // 2
    chance = random.Random(7)
    found = {
        "torn": data[: int(len(data) * 0.7)],
        "empty": b"",
        "without its middle": b"\n".join(lines[:middle] + lines[middle + 3 :]),
        "every reading changed": data.replace(b"[[4,1,", b"[[5,0,").replace(b"[[5]", b"[[3]"),
        "all hashes gone": b"\n".join(line for line in lines if not line.startswith(b'{"lines"')),
        "of another job": data.replace(b'"nonce":"', b'"nonce":"0', 1),
        "of a newer version": data.replace(b'"format":1', b'"format":9', 1),
        "twice": data + data,
        "shuffled": b"\n".join(chance.sample(lines, len(lines))),
    }
    for number in range(25):
        altered = bytearray(data)
        for _ in range(3):
            altered[chance.randrange(len(data))] = chance.choice(b'0123456789[]",x\n')
        found[f"damaged at random {number}"] = bytes(altered)
    return found


def test_no_damage_of_what_was_recorded_makes_a_parent_that_takes_over_believe_what_the_folder_does_not_say(storage):
    job, door = interrupted(storage, seed=3, after=16.0)
    store = job.folder.store
    data = b"".join(store.get(name) or b"" for name in parents(store)[1])
    assert len(data) > 3_000
    for altered in damages(data).values():
        store.put("events/1.jsonl", altered)
        both(job, door)


def test_a_reading_of_a_batch_whose_attempt_was_given_up_since_is_not_believed(storage):
    job, door = interrupted(storage, seed=1, after=14.0)
    events, *_ = both(job, door)
    ended = next(e for e in events if isinstance(e, ev.Restored) and e.reading.ended)
    job.folder.store.put(layout.revoked(ended.batch, ended.attempt), encode_json({"format": 1, "records": 0}))
    again, *_ = both(job, door)
    assert not next(e for e in again if isinstance(e, ev.Restored) and e.batch == ended.batch).reading.ended


def test_batches_come_in_their_order_however_each_was_found_to_be_over():
    job = prepared(items=4, batch_size=1).job
    end = encode_json(EndRecord(EndReason.COMPLETED, Counts(succeeded=1)).to_json())
    job.folder.store.put_new(layout.end(0, 0), end)
    job.folder.store.append(layout.log(1, 0), b"")  # its run was deleted since
    job.folder.store.put_new(layout.end(2, 0), end)
    for again in (False, True):  # the first look gives the deleted attempt up, the second finds it given up
        events = asyncio.run(restore(job, MemoryGateway()))
        assert [(e.batch, e.reading.ended) for e in events if isinstance(e, ev.Restored)] == [
            (0, True), (1, False), (2, True),
        ], again  # fmt: skip


# ------------------------------------------------------------------ quicker


def settled(batches: int, recorded: int) -> tuple[Job, Watched]:
    """A job whose batches are over; an earlier parent recorded so many of them."""
    job = prepared(items=batches, batch_size=1).job
    writer = JournalWriter(job.folder.store, Header(job.setup, "", 1, job.nonce))
    end = encode_json(EndRecord(EndReason.COMPLETED, Counts(succeeded=1)).to_json())
    for batch in range(batches):
        job.folder.store.put_new(layout.end(batch, 0), end)
    reading = Reading(Counts(succeeded=1), 0, 0, True, EndReason.COMPLETED)
    events = [Recorded(n + 1, n / 1000, ev.Closed(n, 0, reading), []) for n in range(recorded)]
    for first in range(0, recorded, 50):
        writer.write(events[first : first + 50])
    watched = Watched(job.folder.store)
    folder = JobFolder(watched)  # type: ignore[arg-type]
    return replace(job, folder=folder, epoch=2), watched


@pytest.mark.parametrize(("recorded", "gets"), [(1000, 9), (990, 29), (0, 2001)])
def test_taking_over_a_thousand_settled_batches_reads_what_was_recorded_and_what_is_missing_there(recorded, gets):
    job, watched = settled(1000, recorded)
    events = asyncio.run(restore(job, MemoryGateway()))
    assert [(e.batch, e.reading.counts.succeeded) for e in events if isinstance(e, ev.Restored)] == [
        (batch, 1) for batch in range(1000)
    ]
    assert watched.gets <= gets
    assert watched.gets > 1000 or recorded


def test_a_flow_of_somebody_else_that_settled_is_recorded_too_and_one_that_did_not_is_read_again(storage):
    async def whole() -> tuple[Job, Still]:
        engine = SimulatedEngine(by_value)
        theirs = replace(engine.deployments[DEPLOYMENT], parameter_schema={"properties": {"item": {}}})
        engine.deployments[DEPLOYMENT] = replace(theirs, is_batch_flow=False)
        gateway = MemoryGateway(engine=engine)
        spec = make_spec(
            deployment=DEPLOYMENT, max_in_flight=4, kill_switch=None, job_id="j", storage=storage,
            pass_items_as="one:item", batch_retries=1,
        )  # fmt: skip
        first = await prepare(spec, as_source(range(30), storage=storage), gateway, settings=SETTINGS)
        reactor = Reactor(first.job, gateway, log=logger, io=Io(inline=True), recorder=Recorder(first.job))
        running = asyncio.ensure_future(reactor.run())
        await asyncio.sleep(25)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        second = await take_over("j", storage, gateway, settings=SETTINGS)
        return second.job, await stilled(second.job, gateway)

    async def by_value(run: Any) -> Phase:
        await asyncio.sleep(1)
        return (Phase.COMPLETED, Phase.FAILED, Phase.CRASHED)[run.parameters["item"] % 3]

    _, quick, long = both(*run_virtually(whole()))
    assert quick < long
