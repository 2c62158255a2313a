"""What can go wrong in a simulated engine: scripted one by one, or drawn from a seed.

A script names what happens next (`faults.next_submits(SubmitFault.LOST_ANSWER)`); a seed draws everything, the same
way each time. The fate of a run depends on the seed and on its batch and attempt alone: never on the order of other
calls, nor on the random nonce of its job.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from orchestrator.engine.gateway import Submission

Fault = TypeVar("Fault", bound=StrEnum)


class SubmitFault(StrEnum):
    """What becomes of one creation."""

    BUSY = "busy"  # 503: tried again inside the gateway
    UNAVAILABLE = "unavailable"  # the connection is refused: nothing was sent
    LOST_ANSWER = "lost_answer"  # carried out, and the answer never came
    LOST_REQUEST = "lost_request"  # not carried out, and nobody can tell
    LATE = "late"  # carried out `late_seconds` after everybody stopped waiting for the answer
    REFUSED = "refused"


class WaitFault(StrEnum):
    """What becomes of one wait."""

    EARLY = "early"  # the connection ends at once
    NEVER = "never"  # the news is lost: silence until the timeout
    RAISES = "raises"
    NOT_FINAL = "not_final"  # a run is returned that has not ended


class ReadFault(StrEnum):
    """What becomes of one reading of records."""

    SLOW = "slow"  # the answer was made at once and arrives up to `slow_seconds` later, when it is not true any more


class ProgressFault(StrEnum):
    """What becomes of one report of progress."""

    LOST = "lost"
    LATE = "late"  # stored `late_seconds` later, over what is newer by then
    REPEATED = "repeated"  # told twice in one reading
    SWAPPED = "swapped"  # held back until the next one is there, and stored over it


@dataclass(frozen=True, slots=True)
class Fate:
    """What happens to one run, in seconds after it began to run (`..._pending`: after it became Pending).

    Args:
        stuck_pending: Its infrastructure never comes up.
        crash_after: Its process dies and its worker says so.
        vanish_after: Its process dies and nobody says so: RUNNING for ever.
        delete_after, cancel_after, pause_after: Somebody deletes, cancels or pauses it.
        false_crash_after: Said to have crashed while its process goes on.
        deaf: It hears no cancel; the server gives up after its own timeout, the process goes on.
        resurrect_after: Seconds after CANCELLED before it runs all the same.
        start_factor: Makes its start slower or quicker than the engine's latency.
    """

    stuck_pending: bool = False
    crash_after: float | None = None
    vanish_after: float | None = None
    delete_after: float | None = None
    cancel_after: float | None = None
    pause_after: float | None = None
    false_crash_after: float | None = None
    deaf: bool = False
    resurrect_after: float | None = None
    start_factor: float = 1.0


NO_FATE = Fate()


@dataclass(frozen=True, slots=True)
class Rates:
    """Probabilities of the seeded mode; each fate's moment is drawn from 0 .. `fate_seconds`."""

    busy: float = 0.1
    unavailable: float = 0.02  # any call
    lost_answer: float = 0.03
    lost_request: float = 0.03
    late_commit: float = 0.01
    read_slow: float = 0.03
    wait_early: float = 0.1
    wait_never: float = 0.1
    wait_raises: float = 0.02
    wait_not_final: float = 0.03
    progress_lost: float = 0.1
    progress_late: float = 0.1
    progress_repeated: float = 0.1
    progress_swapped: float = 0.05
    stuck_pending: float = 0.01
    crash: float = 0.05
    vanish: float = 0.01
    delete: float = 0.01
    cancel: float = 0.005
    pause: float = 0.0
    false_crash: float = 0.01
    deaf: float = 0.02
    resurrect: float = 0.02
    fate_seconds: float = 30.0


@dataclass
class Faults:
    """Scripts first, then the seed's draws, else nothing goes wrong.

    Args:
        seed: Draw faults by `rates`; None draws none.
        fates: Decides the fate of a run by its submission; what it returns None for is left to the seed.
        late_seconds: How late a late report of progress or a late creation is.
        slow_seconds: How long a slow answer takes at most.
        retry_after: Seconds that an answer 429 asks to wait.

    Attributes:
        injected: How often each kind of fault happened so far.
    """

    seed: int | None = None
    rates: Rates = field(default_factory=Rates)
    fates: Callable[[Submission], Fate | None] | None = None
    late_seconds: float = 7.0
    slow_seconds: float = 5.0
    retry_after: float = 5.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.injected: Counter[str] = Counter()
        self._submits: deque[SubmitFault | None] = deque()
        self._waits: deque[WaitFault | None] = deque()
        self._reads: deque[ReadFault | None] = deque()
        self._progress: deque[ProgressFault | None] = deque()
        self._outages: list[tuple[float, float, frozenset[str]]] = []
        self._most: tuple[int, float] | None = None
        self._let_in: deque[float] = deque()

    # -- scripting

    def next_submits(self, *faults: SubmitFault | None) -> None:
        """What becomes of the next creations, in order; None lets one pass."""
        self._submits.extend(faults)

    def next_waits(self, *faults: WaitFault | None) -> None:
        self._waits.extend(faults)

    def next_reads(self, *faults: ReadFault | None) -> None:
        self._reads.extend(faults)

    def next_progress(self, *faults: ProgressFault | None) -> None:
        self._progress.extend(faults)

    def outage(self, start: float, end: float, *methods: str) -> None:
        """Nothing (or none of these gateway methods) answers from `start` until `end` on the loop's clock."""
        self._outages.append((start, end, frozenset(methods)))

    def at_most(self, requests: int, seconds: float = 60.0) -> None:
        """No more requests than this are answered in any span of so many seconds; the others get 429."""
        self._most = requests, seconds

    def still(self) -> None:
        """From now on nothing goes wrong any more (runs keep the fate they have)."""
        self.seed = None
        self.fates = None
        for script in (self._submits, self._waits, self._reads, self._progress, self._outages):
            script.clear()
        self._most = None

    # -- asked by the simulated engine

    def is_out(self, method: str, now: float) -> bool:
        if any(start <= now < end and (not of or method in of) for start, end, of in self._outages):
            self.injected["call in an outage"] += 1
            return True
        if self.seed is None or self._random.random() >= self.rates.unavailable:
            return False
        self.injected["call refused"] += 1
        return True

    def turns_away(self, now: float) -> bool:
        if self._most is None:
            return False
        most, seconds = self._most
        while self._let_in and now - self._let_in[0] >= seconds:
            self._let_in.popleft()
        if len(self._let_in) < most:
            self._let_in.append(now)
            return False
        self.injected["request turned away"] += 1
        return True

    def coin(self) -> bool:
        """Whether something that failed was carried out all the same; never without a seed."""
        return self.seed is not None and self._random.random() < 0.5

    def submit(self) -> SubmitFault | None:
        r = self.rates
        rates = {
            SubmitFault.BUSY: r.busy,
            SubmitFault.LOST_ANSWER: r.lost_answer,
            SubmitFault.LOST_REQUEST: r.lost_request,
            SubmitFault.LATE: r.late_commit,
        }
        return self._next("creation", self._submits, rates)

    def wait(self) -> WaitFault | None:
        r = self.rates
        rates = {
            WaitFault.EARLY: r.wait_early,
            WaitFault.NEVER: r.wait_never,
            WaitFault.RAISES: r.wait_raises,
            WaitFault.NOT_FINAL: r.wait_not_final,
        }
        return self._next("wait", self._waits, rates)

    def read(self) -> ReadFault | None:
        return self._next("reading", self._reads, {ReadFault.SLOW: self.rates.read_slow})

    def slowness(self) -> float:
        """Seconds that a slow answer is on its way; the whole time without a seed."""
        return self.slow_seconds * (self._random.random() if self.seed is not None else 1.0)

    def progress(self) -> ProgressFault | None:
        r = self.rates
        rates = {
            ProgressFault.LOST: r.progress_lost,
            ProgressFault.LATE: r.progress_late,
            ProgressFault.REPEATED: r.progress_repeated,
            ProgressFault.SWAPPED: r.progress_swapped,
        }
        return self._next("news", self._progress, rates)

    def fate(self, submission: Submission) -> Fate:
        if self.fates is not None and (fate := self.fates(submission)) is not None:
            return fate
        if self.seed is None:
            return NO_FATE
        attempt = "/".join(submission.key.split("/")[-2:])  # of <job>/<nonce>/<batch>/<attempt>
        chance, r = random.Random(f"{self.seed}/{attempt}"), self.rates

        def moment(rate: float) -> float | None:
            drawn = chance.random(), chance.random() * r.fate_seconds
            return drawn[1] if drawn[0] < rate else None

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
            start_factor=0.2 + 3 * chance.random(),
        )

    def _next(self, what: str, script: deque[Fault | None], rates: Mapping[Fault, float]) -> Fault | None:
        fault = script.popleft() if script else self._draw(rates)
        if fault is not None:
            self.injected[f"{what} {fault.value.replace('_', ' ')}"] += 1
        return fault

    def _draw(self, rates: Mapping[Fault, float]) -> Fault | None:
        if self.seed is None:
            return None
        point = self._random.random()
        for fault, rate in rates.items():
            if point < rate:
                return fault
            point -= rate
        return None
