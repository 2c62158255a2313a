"""What the nemesis can do. Each fault strikes, holds, and takes back what an operator would take back."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

from tests.chaos.jobs import ChaosJob
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.world import DOORS, World


class NotNow(Exception):
    """There is nothing for this fault to strike at the moment; the text says what is missing."""


class NotHere(Exception):
    """This machine does not let this fault happen; the text is the reason."""


@dataclass
class Strike:
    """One fault as it happens.

    Args:
        target: What it struck, for people; `hit`: connections it struck, where it is about connections.
    """

    kind: str
    began: float
    ended: float = 0.0
    target: str = ""
    hit: int | None = None
    jobs: list[str] = field(default_factory=list)


class Nemesis:
    """Strikes at a world and its jobs, as chance has it.

    Args:
        jobs: Gives the jobs that are not over.
        doors: Whose connections are struck, in turn.
        chance: Every choice is drawn from here.
    """

    def __init__(
        self,
        world: World,
        jobs: Callable[[], list[ChaosJob]],
        chance: random.Random,
        doors: Sequence[str] = DOORS,
    ) -> None:
        self.world, self.jobs, self.chance, self._all_doors = world, jobs, chance, doors
        self._doors: list[str] = []

    # ------------------------------------------------------------------ processes

    def kill_parent(self, strike: Strike) -> None:
        job = self._job(lambda j: bool(j.parent_pids()) and bool(j.executions()))
        pid = job.shoot_parent()
        strike.target = f"parent of {job.id} (process {pid})"

    def kill_child(self, strike: Strike) -> None:
        run, pids = self._child()
        _kill(pids)
        strike.target = f"child run {run} (process {pids[0]})"

    def kill_worker(self, strike: Strike) -> None:
        name = self._worker()
        orphans = len(self.world.worker(name).children(recursive=True))
        self.world.kill_worker(name)
        strike.target = f"worker {name}, {orphans} processes orphaned"
        self._replace(3)

    def kill_worker_and_children(self, strike: Strike) -> None:
        name = self._worker(lambda n: bool(self.world.worker(n).children()))
        family = self.world.worker(name).children(recursive=True)
        # The worker first, so that it cannot report what becomes of the others.
        self.world.kill_worker(name)
        parents = {pid: job for job in self.jobs() for pid in job.parent_pids()}
        for process in family:
            if (job := parents.get(process.pid)) is not None:
                job.shoot_parent()
        _kill([p.pid for p in family])
        strike.target = f"worker {name} and {len(family)} processes of its runs"
        self._replace(3)

    def freeze_worker(self, strike: Strike) -> None:
        name = self._worker()
        worker = self.world.worker(name)
        worker.suspend()
        strike.target = f"worker {name} for 20 s"
        try:
            time.sleep(20)
        finally:
            worker.resume()

    # ------------------------------------------------------------------ the server

    def restart_server(self, strike: Strike, seconds: float) -> None:
        kills = self.chance.random() < 0.5
        strike.target = f"{'SIGKILL' if kills else 'SIGTERM'}, back after {seconds:g} s"
        self.world.end_server(kills=kills)
        try:
            time.sleep(seconds)
        finally:
            self.world.stack.start_server()

    # ------------------------------------------------------------------ the connection

    def cut(self, strike: Strike) -> None:
        door = self._door(strike, "cut")
        for _ in range(3):
            door.cut()
            time.sleep(1)

    def refuse(self, strike: Strike) -> None:
        self._for_a_while(strike, Mode.REFUSE, self.chance.choice([5, 15, 30]))

    def delay(self, strike: Strike) -> None:
        self._for_a_while(strike, Mode.DELAY, 15, delay=self.chance.choice([0.3, 1.0, 3.0]))

    def blackhole(self, strike: Strike) -> None:
        self._for_a_while(strike, Mode.BLACKHOLE, self.chance.choice([10, 25]))

    def close_websockets(self, strike: Strike) -> None:
        door = self._door(strike, "websockets closed with 1001")
        for _ in range(3):
            door.close_websockets(1001)
            time.sleep(2)

    def answer_429(self, strike: Strike) -> None:
        self._for_a_while(strike, Mode.TOO_MANY, self.chance.choice([5, 15]))

    def answer_503(self, strike: Strike) -> None:
        self._for_a_while(strike, Mode.BUSY, self.chance.choice([5, 15]))

    # ------------------------------------------------------------------ the disk

    def fill_disk(self, strike: Strike) -> None:
        if self.world.disk.missing is not None:
            raise NotHere(self.world.disk.missing)
        seconds = self.chance.choice([8, 20, 35])
        strike.target = f"full for {seconds} s"
        self.world.disk.fill()
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.5)
                self.world.disk.fill()  # what somebody else deleted meanwhile is not given back
        finally:
            self.world.disk.free()

    # ------------------------------------------------------------------ choosing

    def _job(self, suits: Callable[[ChaosJob], bool]) -> ChaosJob:
        found = [job for job in self.jobs() if suits(job)]
        if not found:
            raise NotNow("no parent is at work")
        return self.chance.choice(found)

    def _child(self) -> tuple[str, list[int]]:
        """A child run that is at work on an item."""
        here = self.world.runs_here()
        busy = {x.run for job in self.jobs() for x in job.executions() if x.end is None and x.run in here}
        if not busy:
            raise NotNow("no item is in progress")
        run = self.chance.choice(sorted(busy))
        return run, here[run]

    def _worker(self, suits: Callable[[str], bool] = lambda name: True) -> str:
        found = [name for name in self.world.workers() if suits(name)]
        if not found:
            raise NotNow("no worker has what is looked for")
        return self.chance.choice(sorted(found))

    def _replace(self, seconds: float) -> None:
        time.sleep(seconds)
        self.world.add_worker()

    def _door(self, strike: Strike, what: str) -> Proxy:
        if not self._doors:
            self._doors = self.chance.sample(list(self._all_doors), len(self._all_doors))
        name = next((name for name in self._doors if self.world.doors[name].connected), None)
        if name is None:
            raise NotNow(f"nothing is connected to the doors of {', '.join(self._doors)}")
        self._doors.remove(name)
        door = self.world.doors[name]
        strike.target = f"{name}: {what}"
        strike.hit = -door.hit
        self._struck = door
        return door

    def _for_a_while(self, strike: Strike, mode: Mode, seconds: float, *, delay: float = 0.0) -> None:
        door = self._door(strike, f"{mode.value} for {seconds:g} s" + (f", {delay:g} s each" if delay else ""))
        door.set(mode, delay=delay)
        try:
            time.sleep(seconds)
        finally:
            door.set(Mode.PASS)

    def strike(self, fault: Fault) -> Strike:
        """Do it, from the first blow to the last thing taken back.

        Raises:
            NotNow, NotHere: nothing was done.
        """
        strike = Strike(fault.kind, time.time())
        strike.jobs = [job.id for job in self.jobs()]
        fault.act(self, strike)
        strike.ended = time.time()
        if strike.hit is not None:
            strike.hit += self._struck.hit
        strike.jobs = sorted({*strike.jobs, *(job.id for job in self.jobs())})
        return strike


@dataclass(frozen=True)
class Fault:
    """A kind of fault: its name, what it is, how it is done; `long`: in campaigns of ten minutes and more."""

    kind: str
    what: str
    act: Callable[[Nemesis, Strike], None]
    long: bool = False


FAULTS = {
    fault.kind: fault
    for fault in (
        Fault("kill-parent", "SIGKILL of a parent; it is resumed", Nemesis.kill_parent),
        Fault("kill-child", "SIGKILL of a child run at work", Nemesis.kill_child),
        Fault("kill-worker", "SIGKILL of a worker, its runs orphaned; another one starts", Nemesis.kill_worker),
        Fault("kill-worker-and-children", "SIGKILL of a worker and all its runs", Nemesis.kill_worker_and_children),
        Fault("freeze-worker", "SIGSTOP of a worker for 20 s", Nemesis.freeze_worker),
        Fault("server-2s", "server ended, back after 2 s", lambda n, s: n.restart_server(s, 2)),
        Fault("server-20s", "server ended, back after 20 s", lambda n, s: n.restart_server(s, 20)),
        Fault("server-2min", "server ended, back after 2 min", lambda n, s: n.restart_server(s, 120), long=True),
        Fault("cut", "all connections reset, three times", Nemesis.cut),
        Fault("refuse", "connections refused, 5 to 30 s", Nemesis.refuse),
        Fault("delay", "every piece of data delayed by 0.3 to 3 s, 15 s long", Nemesis.delay),
        Fault("blackhole", "connections taken, nothing answered, 10 or 25 s", Nemesis.blackhole),
        Fault("websockets-1001", "websockets closed with code 1001, three times", Nemesis.close_websockets),
        Fault("answer-429", "every request answered with 429 and Retry-After, 5 or 15 s", Nemesis.answer_429),
        Fault("answer-503", "every request answered with 503, 5 or 15 s", Nemesis.answer_503),
        Fault("disk-full", "the job folders' disk full, 8 to 35 s", Nemesis.fill_disk),
    )
}


def _kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=2)
