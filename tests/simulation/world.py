"""The world a simulated job lives in: the simulated Prefect, the job folder's storage, and all that was seen to happen.

Whatever a rule of the checker needs is noted here while it happens; what breaks a rule at that very moment is told at
once (`World.violate`), with the time and the batch it is about.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.core.model import Phase, RunId
from orchestrator.engine.faults import Fate, Faults
from orchestrator.engine.gateway import Run, Submission
from orchestrator.engine.simulated import Record
from orchestrator.engine.simulation import SimulatedEngine
from orchestrator.errors import StoreUnavailableError
from orchestrator.store import layout
from orchestrator.store.opening import open_store
from tests.simulation.processes import OWNER, DiedError
from tests.simulation.scenario import Scenario

if TYPE_CHECKING:
    from tests.simulation.children import Child
    from tests.simulation.parents import Parent

FENCE, GRACE = 2.0, 10.0
EPSILON = 0.001
UNATTENDED = (b"no sign of life", b"it did not start within")
"""Why runs are given up that nobody may be left to end."""


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept."""

    rule: str
    text: str
    batch: int | None
    at: float


@dataclass
class Execution:
    """One item being run by one child: when, and what was written of it."""

    batch: int
    attempt: int
    begin: float
    end: float | None = None
    recorded: str | None = None  # outcome that its ledger took
    excused: bool = False  # its process had stood still: it could not have known


@dataclass
class Facts:
    """What happened, by item, batch and attempt."""

    executions: dict[int, list[Execution]] = field(default_factory=lambda: defaultdict(list))
    revoked: dict[tuple[int, int], float] = field(default_factory=dict)
    ended: dict[tuple[int, int], float] = field(default_factory=dict)
    stops: list[tuple[float, bytes]] = field(default_factory=list)
    cancel_stop_at: float | None = None
    running: set[tuple[int, int]] = field(default_factory=set)  # attempts that Prefect said ran, at some time
    ghosts: set[RunId] = field(default_factory=set)  # created under a key whose first run had been deleted
    silent: set[tuple[int, int]] = field(default_factory=set)  # cancelled because they gave no sign of life
    reopened: bool = False  # a run left the state in which it had ended


class World(SimulatedEngine):
    """The simulated Prefect, and everybody's eyes.

    Args:
        story: Keep every line of the story; else only what the rules need.
    """

    def __init__(self, scenario: Scenario, child: Callable[[Any], Any], *, story: bool = False) -> None:
        rates, late = scenario.rates, scenario.late_seconds
        faults = Faults(seed=scenario.seed, rates=rates, fates=self._fate_of, late_seconds=late)
        if scenario.most_requests is not None:
            faults.at_most(scenario.most_requests)
        super().__init__(child, capacity=scenario.capacity, latencies=scenario.latencies, faults=faults)
        self.scenario, self.facts, self.lines = scenario, Facts(), [] if story else None
        self.violations: list[Violation] = []
        self.parents: list[Parent] = []
        self.children: dict[RunId, Child] = {}  # processes that are alive
        self.children_of: dict[int, list[Child]] = defaultdict(list)  # the same, by batch
        self.chance = random.Random(f"world/{scenario.seed}")
        self.quiet = False  # the story is over: no faults any more
        self.began = 0.0
        self.alive_seconds = 0.0
        self._held: dict[RunId, tuple[Parent | None, float]] = {}  # runs that never ended: who sent them, since when
        self._sent: dict[int, tuple[Parent | None, float, int | None]] = {}
        self._keys_ever: set[str] = set()
        self._batch_of: dict[RunId, tuple[int, int]] = {}
        self._run_of: dict[tuple[int, int], RunId] = {}
        self.created_when: dict[RunId, float] = {}
        if scenario.deployments > 1:
            self.deploy("simulated/others")

    # ------------------------------------------------------------------ telling

    def violate(self, rule: str, text: str, batch: int | None = None) -> None:
        if len(self.violations) < 50:
            self.violations.append(Violation(rule, text, batch, self.now()))
        self.tell(batch, f"*** {rule}: {text}")

    def tell(self, batch: int | None, text: str) -> None:
        """A line of the story."""
        if self.lines is not None:
            owner = OWNER.get()
            self.lines.append((self.now(), batch, owner.name if owner is not None else "", text))

    def inject(self, what: str) -> None:
        """A fault of the nemesis happened."""
        self.faults.injected[what] += 1

    # ------------------------------------------------------------------ fates

    def _fate_of(self, submission: Submission) -> Fate:
        """By batch and attempt: the key also holds a random nonce."""
        if self.quiet:
            return Fate()
        batch, attempt = attempt_of(submission)
        chance, r = random.Random(f"fate/{self.scenario.seed}/{batch}/{attempt}"), self.scenario.rates

        def moment(rate: float) -> float | None:
            happens, when = chance.random() < rate, chance.random() * r.fate_seconds
            return when if happens else None

        return Fate(
            stuck_pending=chance.random() < r.stuck_pending,
            crash_after=moment(r.crash),
            vanish_after=moment(r.vanish),
            delete_after=moment(r.delete),
            cancel_after=moment(r.cancel),
            pause_after=moment(r.pause),
            false_crash_after=moment(r.false_crash),
            deaf=chance.random() < r.deaf,
            resurrect_after=moment(r.resurrect),
            start_factor=0.2 + 2 * chance.random(),
        )

    # ------------------------------------------------------------------ creations (G2, G3)

    def send(self, submission: Submission, delay: float) -> asyncio.Future[Run | None]:
        owner: Any = OWNER.get()
        batch, attempt = attempt_of(submission)
        now = self.now()
        window = owner.windows.get(submission.key) if owner is not None else None
        self._sent[id(submission)] = (owner, now, window)
        self.tell(batch, f"creation of attempt {attempt} sent")
        if owner is not None and owner.reactor is not None:
            if owner.reactor.state.stop is not None:
                self.violate("G3", f"attempt {attempt} was sent by a parent that knew of a stop", batch)
            elif self.facts.stops and (late := owner.late_to_stop(self.facts.stops[0][0])) is not None:
                self.violate("G3", f"attempt {attempt} was sent {late:.2f} s after a stop could be known", batch)
        return super().send(submission, delay)

    def create(self, submission: Submission) -> Run:
        batch, attempt = attempt_of(submission)
        keys = self._keys.setdefault(submission.deployment.flow_id, {})
        is_new = submission.key not in keys
        run = super().create(submission)
        if not is_new:
            self.tell(batch, f"creation of attempt {attempt}: there is one already, {run.phase}")
            return run
        sender, sent_at, window = self._sent.pop(id(submission), (None, self.now(), None))
        self.created_when[run.id] = self.now()
        self._batch_of[run.id], self._run_of[(batch, attempt)] = (batch, attempt), run.id
        self.tell(
            batch, f"attempt {attempt} created as {run.id[-4:]}, sent at {sent_at:.3f} by {sender and sender.name}"
        )
        if submission.key in self._keys_ever:
            # Its first run was deleted: a request that was still on its way makes it anew. It is given up already.
            self.facts.ghosts.add(run.id)
            self.inject("creation after its run was deleted")
            return run
        self._keys_ever.add(submission.key)
        self._check_window(sender, window, batch)
        self._held[run.id] = (sender, self.now())
        self._check_earlier(batch, attempt)
        return run

    def _check_window(self, sender: Parent | None, window: int | None, batch: int) -> None:
        if sender is None or sender.reactor is None or window is None:
            return
        # What other parents had created since it took over, it cannot know.
        others = sum(1 for by, since in self._held.values() if by is not sender and since >= sender.claimed_at)
        held, window = len(self._held) + 1 - others, max(window, sender.reactor.state.window)
        if held > window:
            self.violate("G2", f"{held} child runs are unsettled, {window} may be ({others} more by others)", batch)

    def _check_earlier(self, batch: int, attempt: int) -> None:
        if attempt and not {(batch, attempt - 1)} & (self.facts.revoked.keys() | self.facts.ended.keys()):
            self.violate("G4", f"attempt {attempt} exists, and the one before was neither over nor given up", batch)

    def delete(self, run_id: RunId) -> None:
        self._held.pop(run_id, None)
        batch, attempt = self._batch_of.get(run_id, (None, None))
        self.tell(batch, f"attempt {attempt} deleted")
        super().delete(run_id)

    def _enter(self, record: Record, phase: Phase, name: str | None = None) -> None:
        before = record.phase
        super()._enter(record, phase, name)
        if phase.is_terminal:
            self._held.pop(record.id, None)
        if phase is Phase.RUNNING:
            self.facts.running.add(self._batch_of.get(record.id, (-1, -1)))
        if self.lines is not None:
            batch, attempt = self._batch_of.get(record.id, (None, None))
            self.tell(batch, f"attempt {attempt}: {before} -> {phase}{f' ({name})' if name else ''}")

    def _pause(self, run_id: RunId) -> None:
        super()._pause(run_id)
        if self.chance.random() < 0.7:  # somebody lets it go on later; Prefect runs it anew
            self._later(self.chance.uniform(1, 100), self._go_on, run_id)

    def _go_on(self, run_id: RunId) -> None:
        if (record := self._records.get(run_id)) is not None and record.phase is Phase.PAUSED:
            self.inject("paused run goes on")
            record.fate = Fate()
            self.propose(run_id, Phase.SCHEDULED)

    def resurrect(self, run_id: RunId) -> None:
        self.facts.reopened = True
        super().resurrect(run_id)

    def given_up(self, what: tuple[int, int], silent: bool) -> None:
        """An attempt was given up; one that nobody may be left to end holds no place any more and is not waited for."""
        self.facts.revoked[what] = self.now()
        if (silent or what in self.facts.silent) and self._held.pop(
            self._run_of.get(what, RunId("")), None
        ) is not None:
            self.inject("silent run given up")

    def let_a_child_write(self, name: str) -> None:
        """A child of the batch whose files are being used gets something done just now."""
        attempt = layout.attempt_name(name)
        batch = attempt.batch if attempt is not None else int(name.split("/")[1] or -1) if name.count("/") > 1 else -1
        for child in list(self.children_of.get(batch, ())):
            if self._context.copy().run(child.write_now):
                return

    def run_of(self, batch: int, attempt: int) -> RunId | None:
        """The run of that attempt, if it exists."""
        run = self._run_of.get((batch, attempt))
        return run if run in self._records else None

    def unsettled_runs(self) -> list[tuple[Run, int, int]]:
        """Runs that never ended, with batch and attempt."""
        return [(self._view(self._records[id_]), *self._batch_of[id_]) for id_ in self._held if id_ in self._records]

    # ------------------------------------------------------------------ items (G3, G4)

    def item_started(self, child: Child, index: int) -> Execution:
        now, facts = self.now(), self.facts
        batch, attempt = child.batch, child.attempt
        execution = Execution(batch, attempt, now, excused=child.was_frozen)
        facts.executions[index].append(execution)
        self.tell(batch, f"attempt {attempt}: item {index} starts")
        if child.was_frozen or child.is_blind:
            return execution
        if facts.cancel_stop_at is not None and now > facts.cancel_stop_at + FENCE + EPSILON:
            self.violate("G3", f"item {index} starts {now - facts.cancel_stop_at:.2f} s after the stop", batch)
        given_up = facts.revoked.get((batch, attempt))
        if given_up is not None and now > given_up + FENCE + EPSILON:
            self.violate(
                "G4", f"item {index} starts {now - given_up:.2f} s after attempt {attempt} was given up", batch
            )
        for other in facts.executions[index][:-1]:
            if other.end is None and (other.batch, other.attempt) != (batch, attempt):
                earlier = facts.revoked.get((other.batch, other.attempt))
                if earlier is None or (other.begin > earlier + FENCE + EPSILON and not other.excused):
                    self.violate("G4", f"item {index} runs in attempts {other.attempt} and {attempt} at once", batch)
        return execution


def attempt_of(submission: Submission) -> tuple[int, int]:
    _, _, batch, attempt = submission.key.rsplit("/", 3)
    return int(batch), int(attempt)


class Storage:
    """The store of a job's folder as one process reaches it: away at times, slow to say what it did, and watched.

    Args:
        parent: The process; None for children and for people.
        outages: When nothing can be reached, in seconds of the loop.
    """

    def __init__(self, url: str, world: World, parent: Parent | None, role: str) -> None:
        self._store, self._world, self._parent, self._role = open_store(url), world, parent, role
        self.url, self.appends = self._store.url, self._store.appends

    def put(self, name: str, data: bytes) -> None:
        self._use("put", name, lambda: self._store.put(name, data))

    def put_new(self, name: str, data: bytes) -> bool:
        def create() -> bool:
            created = self._store.put_new(name, data)
            if created:
                self._note(name, data)
            return created

        return bool(self._use("put_new", name, create))

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes | None:
        return self._use("get", name, lambda: self._store.get(name, start, length))  # type: ignore[no-any-return]

    def append(self, name: str, data: bytes) -> None:
        self._use("append", name, lambda: self._store.append(name, data))

    def appender(self, name: str) -> Any:
        return _Appender(self, name)

    def list(self, prefix: str = "") -> Any:
        return self._use("list", prefix or "*", lambda: self._store.list(prefix))

    def delete(self, name: str) -> None:
        self._use("delete", name, lambda: self._store.delete(name))

    def tidy(self) -> None:
        pass

    def _use(self, operation: str, name: str, act: Callable[[], Any]) -> Any:
        world, parent = self._world, self._parent
        if world.quiet:
            return act()
        if parent is None:
            if self._role == "child" and _within(world.scenario.child_store_outages, world.now() - world.began):
                world.inject("storage away from a child")
                raise StoreUnavailableError("the storage is away (simulated)")
            return act()
        parent.about_to_use_storage()
        if parent.storage_is_away():
            world.inject("storage away from the parent")
            raise StoreUnavailableError("the storage is away (simulated)")
        scenario = world.scenario
        if name.startswith(layout.BATCHES) and scenario.races and world.chance.random() < scenario.races:
            world.let_a_child_write(name)
        if scenario.store_glitches and world.chance.random() < scenario.store_glitches:
            done = operation in ("put", "put_new", "append") and world.chance.random() < 0.5
            world.inject("storage: answer lost" if done else "storage: request lost")
            if done:
                act()
            raise StoreUnavailableError("the storage did not answer (simulated)")
        result = act()
        if result is not None and operation == "get" and name.startswith("stop"):
            parent.read_stop_at = min(parent.read_stop_at, world.now())
        parent.has_used_storage()
        return result

    def _note(self, name: str, data: bytes) -> None:
        facts, now = self._world.facts, self._world.now()
        if name.startswith("stop"):
            facts.stops.append((now, data))
            if b'"drain"' not in data and facts.cancel_stop_at is None:
                facts.cancel_stop_at = now
            self._world.tell(None, f"{name} is written: {data.decode()}")
        elif (attempt := layout.attempt_name(name)) is not None:
            what = (attempt.batch, attempt.attempt)
            if attempt.kind is layout.Kind.REVOKED:
                self._world.given_up(what, silent=any(words in data for words in UNATTENDED))
            elif attempt.kind is layout.Kind.END:
                facts.ended[what] = now
            elif name.endswith(".recalled") and b'"silent":true' in data:
                facts.silent.add(what)
            if attempt.kind is not layout.Kind.LOG or self._world.lines is not None:
                self._world.tell(attempt.batch, f"{name} is written: {data[:200].decode(errors='replace').strip()}")


class _Appender:
    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name

    def write(self, data: bytes) -> None:
        self._storage.append(self._name, data)

    def close(self) -> None:
        pass


def _within(windows: tuple[tuple[float, float], ...], at: float) -> bool:
    return any(begin <= at < end for begin, end in windows)


__all__ = [
    "EPSILON",
    "FENCE",
    "GRACE",
    "DiedError",
    "Execution",
    "Facts",
    "Storage",
    "Violation",
    "World",
    "attempt_of",
]
