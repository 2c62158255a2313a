"""One scenario, played from its first parent to the checker's last word."""

from __future__ import annotations

import asyncio
import logging
import random
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from orchestrator.core.model import StopCause, StopMode, StopRecord
from orchestrator.core.report import Report
from orchestrator.reactor import boundaries
from orchestrator.settings import Settings
from orchestrator.store import JobFolder, job_folder_url
from orchestrator.store.opening import open_store
from tests.simulation import checker
from tests.simulation.children import Children
from tests.simulation.parents import JOB, STORAGE, Parent, install_hook
from tests.simulation.processes import OWNER, run
from tests.simulation.scenario import Act, Death, Scenario
from tests.simulation.world import Storage, Violation, World

MOST_PARENTS = 60
QUIET_SECONDS = 500.0  # after the end: the server's own timeouts are over, and so is every grace

DRAIN_PATIENCE = 400.0  # then a person makes a drain a cancel


@dataclass
class Played:
    """What became of a seed.

    Args:
        lines: The story: (time, batch, process, text), when it was asked for.
    """

    scenario: Scenario
    violations: list[Violation]
    injected: Counter[str]
    verdict: str | None
    seconds: float
    steps: int
    parents: int
    runs: int
    lines: list[tuple[float, int | None, str, str]] | None = None
    items: dict[str, int] = field(default_factory=dict)


def play(scenario: Scenario, *, story: bool = False) -> Played:
    """Play a scenario; twice gives the same story twice."""
    logging.getLogger("orchestrator").setLevel(logging.CRITICAL)
    logging.getLogger("tests.simulation").setLevel(logging.CRITICAL)
    stage = _Stage(scenario, story)
    with (
        warnings.catch_warnings(),
        # Not the generator that all threads of this process share: another one's draw would change the story.
        mock.patch("orchestrator.reactor.watch.random", random.Random(scenario.seed)),
        mock.patch("orchestrator.store.folder.open_store", stage.open_store),
        mock.patch("orchestrator.flows.prepare.open_store", stage.open_store),
        mock.patch.object(boundaries, "hook", None),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that a death left unawaited
        install_hook()
        try:
            return run(stage.main(), stage.most_steps)
        finally:
            _forget()


def _forget() -> None:
    store = open_store(STORAGE)
    for entry in store.list():
        store.delete(entry.name)


class _Stage:
    def __init__(self, scenario: Scenario, story: bool) -> None:
        self.scenario, self.story = scenario, story
        self.most_steps = most_steps(scenario)
        self.world: World

    def open_store(self, url: str) -> Any:
        owner: Any = OWNER.get()
        return open_store(url) if owner is None else Storage(url, self.world, owner, "parent")

    async def main(self) -> Played:
        children = Children()
        self.world = world = World(self.scenario, children, story=self.story)
        children.world = world
        self.settings = Settings(**self.scenario.settings)
        world.alive_seconds = self.settings.alive_seconds
        loop: Any = asyncio.get_running_loop()
        world.began = loop.time()
        for begin, end in self.scenario.outages:
            world.faults.outage(begin, end)
        self.folder = JobFolder(job_folder_url(STORAGE, JOB))
        tasks = [asyncio.ensure_future(self._acts()), asyncio.ensure_future(self._lose_patience())]
        whole = asyncio.ensure_future(self._whole())
        loop.on_livelock = lambda: self._give_up(whole, "steps", f"no end after {loop.steps} steps")
        limit = most_seconds(self.scenario)
        timer = loop.call_later(limit, self._give_up, whole, "time", f"no end after {limit:.0f} s")
        report: Report | None = None
        try:
            report = await whole
        except asyncio.CancelledError:
            pass
        finally:
            timer.cancel()
            for task in tasks:
                task.cancel()
        verdict = report.verdict.value if report is not None else None
        items = {} if report is None else {n: getattr(report.items, n) for n in ("succeeded", "failed", "unknown")}
        return Played(
            self.scenario, world.violations, world.faults.injected, verdict, loop.time(), loop.steps,
            len(world.parents), len(world.created_at), world.lines, items,
        )  # fmt: skip

    def _give_up(self, whole: asyncio.Task[Any], rule: str, text: str) -> None:
        stuck = None
        for parent in reversed(self.world.parents):
            if parent.reactor is not None:
                stuck = min(parent.reactor.state.active, default=None)
                break
        self.world.violate(rule, text, stuck)
        whole.cancel()

    # ------------------------------------------------------------------ the story

    async def _whole(self) -> Report | None:
        world, folder = self.world, self.folder
        settled: checker.Outcomes = {}
        report = None
        for number in range(MOST_PARENTS):
            death = self.scenario.deaths[number] if number < len(self.scenario.deaths) else None
            parent = Parent(world, number, death, self.settings)
            world.parents.append(parent)
            parent.start()
            report = await self._until_over(parent, death)
            if report is not None:
                break
            settled |= checker.settled_before(world, folder) if not parent.alive else {}
            await asyncio.sleep(self._gap(parent, death))
            if (report := self._report()) is not None and world.parents[-1].over.done():
                break
        else:
            world.violate("time", f"{MOST_PARENTS} parents, and no report")
            return None
        world.tell(None, f"the job is over: {report.headline}")
        world.quiet = True
        world.faults.still()
        await self._others_stand_down()
        return await self._check(report, settled)

    async def _until_over(self, parent: Parent, death: Death | None) -> Report | None:
        if death is None or death.how != "rival":
            return await parent.over
        done, _ = await asyncio.wait({parent.over}, timeout=death.at)
        if done:
            return parent.over.result()
        self.world.inject("parent got a rival")
        return None

    def _gap(self, parent: Parent, death: Death | None) -> float:
        if death is not None and death.how == "rival":
            return 0.0 if not parent.over.done() else 1.0
        return death.gap if death is not None else 15.0

    def _report(self) -> Report | None:
        """What an earlier parent left behind, when it came to its end."""
        data = self.folder.read_report()
        return None if data is None else Report.from_json(data)

    async def _others_stand_down(self) -> None:
        left = [parent.over for parent in self.world.parents if not parent.over.done()]
        if not left:
            return
        _, pending = await asyncio.wait(left, timeout=60.0)
        for parent in self.world.parents:
            if parent.over in pending:
                self.world.violate("rival", f"{parent.name} goes on a minute after the job is over")

    async def _lose_patience(self) -> None:
        """A drain waits for its children as long as they take, a hanging one for ever: somebody ends that."""
        world = self.world
        while not world.quiet:
            await asyncio.sleep(50.0)
            if not world.facts.stops or world.facts.cancel_stop_at is not None:
                continue
            if world.now() > world.facts.stops[0][0] + DRAIN_PATIENCE:
                await self._act(Act(0.0, "stop", "cancel"))

    async def _acts(self) -> None:
        for act in self.scenario.acts:  # one after the other: who waits for the job to exist does not pause it last
            await asyncio.sleep(max(0.0, self.world.began + act.at - self.world.now()))
            await self._act(act)

    async def _act(self, act: Act) -> None:
        world = self.world
        for _ in range(20):  # people wait for the job to exist
            if self.folder.store.get("job.json", 0, 1) is not None:
                break
            await asyncio.sleep(5.0)
        if world.quiet:
            return
        world.tell(None, f"somebody: {act.what} {act.value or ''}")
        world.inject(f"person: {act.what}")
        who = "a person"
        match act.what:
            case "stop":
                record = StopRecord(StopMode(act.value), StopCause.REQUESTED, "no more", who)
                JobFolder(Storage(self.folder.url, world, None, "person")).request_stop(record)
            case "scale":
                self.folder.write_control({"max_in_flight": act.value})
            case "pause" | "go on":
                self.folder.write_control({"paused": act.what == "pause"})
            case "kill switch":
                self.folder.write_control({"kill_switch": act.value})
            case "cancel parent":
                if world.parents:
                    world.parents[-1].cancel()
            case "pause pool" | "open pool":
                world.paused = act.what == "pause pool"

    # ------------------------------------------------------------------ the end

    async def _check(self, report: Report, settled: checker.Outcomes) -> Report:
        world, folder = self.world, self.folder
        found = checker.outcomes_of(folder, world)
        checker.check_counts(world, report, found)
        checker.check_truth(world, found)
        checker.check_settled(world, settled, found, "after a crash")
        state = next(
            (p.reactor.state for p in reversed(world.parents) if p.reactor and p.reactor.report == report), None
        )
        checker.check_nothing_runs(world, report, state)
        checker.check_found(world, state)
        world.paused = False
        await asyncio.sleep(QUIET_SECONDS)
        checker.check_processes(world)
        later = checker.outcomes_of(folder, world)
        checker.check_settled(world, found, later, "after the end")
        if folder.read_report() is not None:
            await self._take_over_again(report, later)
        return report

    async def _take_over_again(self, report: Report, found: checker.Outcomes) -> None:
        """Once with its report, once as if that had been lost."""
        world, folder = self.world, self.folder
        created = len(world.created_at)
        for lost in (False, True):
            if lost:
                if world.facts.reopened:
                    return  # that it was cancelled by hand stood in the report alone: Prefect says otherwise by now
                folder.store.delete("report.json")
            parent = Parent(world, len(world.parents), None, self.settings)
            world.parents.append(parent)
            parent.start()
            again = await parent.over
            if again is None:
                if not lost and report.verdict in ("tripped", "cancelled", "failed"):
                    continue  # refused: such a job cannot go on
                world.violate("resume", f"taking it over again gave no report (report.json lost: {lost})")
                return
            what = "its report lost" if lost else "its report there"
            if again.items != report.items:
                text = f"taken over again with {what}: {again.items} instead of {report.items}"
                world.violate("resume", text, _first_change(world))
            if len(world.created_at) != created:
                batch = world._batch_of[next(reversed(world._records))][0]
                world.violate("resume", f"taken over again with {what}: {len(world.created_at) - created} runs", batch)
                created = len(world.created_at)
            checker.check_settled(world, found, checker.outcomes_of(folder, world), f"taken over again with {what}")


def _first_change(world: World) -> int | None:
    """The first batch that two parents' machines count differently."""
    reactors = [p.reactor for p in world.parents if p.reactor is not None and p.reactor.report is not None]
    if len(reactors) < 2:
        return None
    for a, b in zip(reactors[-2].state.batches, reactors[-1].state.batches, strict=True):
        if a.reading is None or b.reading is None or a.reading.counts.settled != b.reading.counts.settled:
            return a.index
        if (a.reading.unknown, a.reading.not_started) != (b.reading.unknown, b.reading.not_started):
            return a.index
    return None


def most_seconds(scenario: Scenario) -> float:
    """Virtual seconds after which a job that is not over is stuck.

    Its work one after the other in the window, thrice; for each attempt in such a row what may go wrong with it; and
    all the times that others cost.
    """
    request, latencies = scenario.request, scenario.latencies
    window = min([request["max_in_flight"], scenario.capacity or 10**9])
    window = min([window, *(a.value for a in scenario.acts if a.what == "scale")])
    attempts = request["batch_retries"] + 1
    rounds = -(-scenario.batches // window) * attempts
    work = sum(item.seconds for item in scenario.items) / window * attempts
    each = latencies.pickup + 3 * latencies.start + 40 * latencies.request + 25
    lost = 600.0 + 400.0 * attempts  # the stall of the kill switch; the server's timeout of a run that nobody ends
    waits = sum(
        end - begin for begin, end in (*scenario.outages, *scenario.store_outages, *scenario.child_store_outages)
    )
    waits += sum(death.gap + 120 for death in scenario.deaths)
    waits += sum(abs(act.at) for act in scenario.acts[-1:]) + 400.0
    if limit := min(filter(None, (scenario.budget, scenario.most_requests)), default=0):
        waits += 60.0 * (10 + 40 * scenario.batches * attempts / limit) * (1 + len(scenario.deaths))
    return (
        3 * work
        + rounds * each
        + lost * (1 + rounds / 4 if scenario.rates.vanish or scenario.rates.pause else 2)
        + waits
    )


def most_steps(scenario: Scenario) -> int:
    """Callbacks of the loop after which something goes round in circles."""
    return 300_000 + 2_000 * scenario.batches * (scenario.request["batch_retries"] + 1) + 200 * scenario.total
