"""A campaign: jobs, faults dealt from a shuffled deck, and the judgement of every job once all is over."""

from __future__ import annotations

import random
import shutil
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.checker import Findings, check
from tests.chaos.evidence import Evidence
from tests.chaos.faults import FAULTS, Fault, Nemesis, NotHere, NotNow, Strike
from tests.chaos.jobs import ChaosJob, Kind, Lane, Size
from tests.chaos.world import DOORS, World

QUIET_SECONDS = 150.0  # after the last job, for what Prefect itself has to notice


@dataclass(frozen=True)
class Plan:
    """What a campaign does.

    Args:
        seed: Of every choice.
        seconds: How long faults are dealt; jobs in progress are finished afterwards.
        kinds: Which faults.
        lanes: One job after another in each, by how its parent runs.
        jobs: Most jobs per lane; None: as many as the time allows.
        doors: Whose connections are struck, in turn.
        once: Deal each fault once, in the order given, then end.
        pause: Seconds between two faults, at least and at most.
        deadline_seconds: Of one job.
    """

    seed: int
    seconds: float
    kinds: Sequence[str]
    lanes: Sequence[Kind] = ("process", "deployment")
    size: Size = field(default_factory=Size)
    jobs: int | None = None
    once: bool = False
    pause: tuple[float, float] = (2.0, 7.0)
    deadline_seconds: float = 1200.0
    workers: int = 2
    doors: Sequence[str] = DOORS


@dataclass
class Judgement:
    """What became of a campaign."""

    plan: Plan
    home: Path
    strikes: list[Strike] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    evidence: list[Evidence] = field(default_factory=list)
    findings: dict[str, Findings] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    resumed: int = 0
    seconds: float = 0.0

    @property
    def violations(self) -> list[str]:
        return [*self.complaints, *(f"{job}: {v}" for job, f in self.findings.items() for v in f.violations)]


class Campaign:
    """Runs a plan on a stack of its own."""

    def __init__(self, plan: Plan, home: Path, *, echo: bool = True) -> None:
        self.plan, self.home = plan, home
        self._echo = echo
        self._began = time.time()
        self.lines: list[str] = []
        self.judgement = Judgement(plan, home)
        self._chance = random.Random(plan.seed)
        self._more = True

    def log(self, line: str) -> None:
        text = f"{time.time() - self._began:7.1f} s  {line}"
        self.lines.append(text)
        with (self.home / "nemesis.log").open("a") as file:
            file.write(text + "\n")
        if self._echo:
            print(text, flush=True)

    def run(self) -> Judgement:
        self.home.mkdir(parents=True, exist_ok=True)
        with World(self.home / "world", workers=self.plan.workers, log=self.log) as self.world:
            self.log("the stack is up")
            self._lanes = [Lane(lambda kind=kind: self._job(kind)) for kind in self.plan.lanes]
            over = threading.Event()
            keeper = threading.Thread(target=self._keep, args=(over,), name="operator", daemon=True)
            keeper.start()
            try:
                self._strike()
                self._more = False
                self._finish()
            finally:
                over.set()
                keeper.join()
            self._judge()
        self.judgement.seconds = time.time() - self._began
        return self.judgement

    @property
    def _jobs(self) -> list[ChaosJob]:
        return [job for lane in self._lanes for job in lane.jobs]

    def _current(self) -> list[ChaosJob]:
        return [job for lane in self._lanes if (job := lane.current) is not None]

    def _job(self, kind: Kind) -> ChaosJob:
        number = 1 + len(self._jobs)
        job = ChaosJob(
            self.world, f"chaos-{number}", kind, self.plan.size, random.Random(f"{self.plan.seed}/{number}"),
            self.plan.deadline_seconds,
        )  # fmt: skip
        self.log(f"{job.id}: begins, its parent a {kind}")
        return job

    def _keep(self, over: threading.Event) -> None:
        """The operator: begins jobs, resumes dead parents, replaces dead workers."""
        while not over.wait(0.3):
            try:
                for lane in self._lanes:
                    before = lane.current
                    full = self.plan.jobs is not None and len(lane.jobs) >= self.plan.jobs
                    lane.tend(more=self._more and not full)
                    if before is not None and before.is_over:
                        self.log(f"{before.id}: over after {(before.ended or 0) - before.began:.0f} s")
                self.world.keep_workers()
            except Exception:
                self.judgement.complaints.append(f"the operator stumbled: {traceback.format_exc()}")
                self.log(traceback.format_exc())

    # ------------------------------------------------------------------ the faults

    def _strike(self) -> None:
        nemesis = Nemesis(self.world, self._current, self._chance, self.plan.doors)
        end = time.time() + self.plan.seconds
        deck: list[str] = []
        dealt = False
        while time.time() < end and not (self.plan.once and dealt and not deck):
            if not deck:
                deck = list(self.plan.kinds)
                if not self.plan.once:
                    self._chance.shuffle(deck)
                dealt = True
            fault = FAULTS[deck.pop(0)]
            if fault.kind in self.judgement.skipped or (fault.long and self._happened(fault.kind)):
                continue
            if fault.long and end - time.time() < 150:
                continue
            self._until_possible(nemesis, fault)
            time.sleep(self._chance.uniform(*self.plan.pause))

    def _happened(self, kind: str) -> bool:
        return any(strike.kind == kind for strike in self.judgement.strikes)

    def _until_possible(self, nemesis: Nemesis, fault: Fault) -> None:
        """Strike as soon as there is something to strike, for up to a minute."""
        end = time.time() + 60
        self.log(f"{fault.kind}: next")
        while True:
            try:
                if not any(job.executions() for job in self._current()):
                    raise NotNow("no item has begun")
                strike = nemesis.strike(fault)
            except NotNow as e:
                if time.time() > end or (self.plan.once and not self._current() and self._jobs):
                    self.log(f"{fault.kind}: passed over, {e}")
                    return
                time.sleep(0.3)
            except NotHere as e:
                self.judgement.skipped[fault.kind] = str(e)
                self.log(f"{fault.kind}: not possible here, {e}")
                return
            else:
                self.judgement.strikes.append(strike)
                hit = f", {strike.hit} connections" if strike.hit is not None else ""
                self.log(f"{fault.kind}: {strike.target}{hit} ({strike.ended - strike.began:.0f} s)")
                return

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        """No more faults: every job is finished, and everything that is over is given the time to be over."""
        self.log("no more faults")
        while self._current():
            time.sleep(0.5)
        end = time.time() + QUIET_SECONDS
        while time.time() < end:
            if all(job.is_quiet() for job in self._jobs):
                self.log("all is quiet")
                return
            time.sleep(1)
        self.log("it is not quiet, and should be")

    def _judge(self) -> None:
        for job in self._jobs:
            evidence = job.evidence()
            found = check(evidence)
            self.judgement.evidence.append(evidence)
            self.judgement.findings[job.id] = found
            self.judgement.complaints += job.complaints
            self.judgement.resumed += job.resumed
            if found.violations or job.complaints:
                self._keep_story(job)

    def _keep_story(self, job: ChaosJob) -> None:
        """The job's folder, beside its account: the small disk is gone with the stack."""
        if job.folder.exists():
            shutil.copytree(job.folder, self.home / "stories" / job.id, dirs_exist_ok=True)
