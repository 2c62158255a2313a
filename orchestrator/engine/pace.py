"""How fast a parent asks Prefect: within a budget of requests per minute, and no faster than Prefect wants (HTTP 429).

One `Pace` belongs to one parent; every request takes its turn here just before it is sent, tries again included. The
budget is a token bucket. With a burst of `b` and a refill of `r` per second no span of `WINDOW_SECONDS` sees more than
`b + r * WINDOW_SECONDS` requests; `r` is chosen so that this is the budget itself, in whatever minute one counts.

Turns are given by need, then in order: whoever cancels child runs waits for nobody, and a few tokens are kept back for
that; reading what became of children comes before creating more of them (a kill switch must not be blind while a large
window fills); pages and waits take what is left, for reading alone is enough.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum

LEAST_BUDGET = 20
"""Below so many requests a minute a parent does little but wait."""
WINDOW_SECONDS = 62.0  # a minute, and two seconds for requests that are on their way
BURST_SHARE = 30  # a thirtieth of the budget may come at once; as much again is kept for cancelling
LEAST_RESERVE = 4  # to look which child runs run, to cancel the others, and to see them ended
HOLD_SECONDS = (1.0, 5.0, 60.0)  # least, when Prefect does not say, most
SPACING_SECONDS = 0.25  # between those that waited while Prefect wanted nothing: not all at once again
SLOWED_SECONDS = 60.0  # so long after a refusal readings keep their distance, and people are told
SLOWED_DISTANCE_SECONDS = 10.0
SAID_SECONDS = 60.0
NOTICED_SECONDS = 5.0  # a turn that takes longer is worth a word
LOOK_SECONDS = 0.5  # how soon a turn is given up that is not wanted any more


class Need(IntEnum):
    """What a request is for; less is more urgent."""

    CANCEL = 0
    CONFIRM = 1  # whether cancels took: as urgent, but when it is turned away cancels still go out
    READ = 2
    CREATE = 3
    SHOW = 4
    LISTEN = 5


class NotWantedError(Exception):
    """A request was given up before it was sent: it is not wanted any more."""


def _always() -> bool:
    return True


_asking: ContextVar[tuple[Need, Callable[[], bool]]] = ContextVar("asking", default=(Need.READ, _always))
_given: ContextVar[bool] = ContextVar("given", default=False)


@contextmanager
def asking(need: Need, wanted: Callable[[], bool] = _always) -> Iterator[None]:
    """Within: what requests are for. A more urgent need around it stays.

    Args:
        wanted: Asked while a request waits and before it is sent; False gives it up with `NotWantedError`.
    """
    if _given.get():
        need = min(need, _asking.get()[0])
    tokens = _asking.set((need, wanted)), _given.set(True)
    try:
        yield
    finally:
        _asking.reset(tokens[0])
        _given.reset(tokens[1])


@dataclass(order=True, slots=True)
class _Turn:
    need: Need
    number: int
    since: float = field(compare=False)
    given: asyncio.Future[None] = field(compare=False)


class Pace:
    """Gives turns; used from one event loop at a time.

    Args:
        per_minute: The budget; None for none.
        say: Takes a line for people when Prefect turned a request away, at most once a minute.

    Attributes:
        turned_away: Requests that Prefect answered with 429 so far.
        burst, rate: Requests that may come at once, and per second, under a budget.
    """

    def __init__(self, per_minute: int | None = None, say: Callable[[str], None] = lambda line: None) -> None:
        self._say = say
        self.turned_away = 0
        self._turned_away_at = float("-inf")
        self._said_at = float("-inf")
        self._held_until = dict.fromkeys(Need, 0.0)
        self._spaced_until = 0.0
        self._waiting: list[_Turn] = []
        self._numbers = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.per_minute: int | None = None
        self._tokens, self._refilled_at, self._reserve, self.burst, self.rate = 0.0, 0.0, 0, 0, 0.0
        self.limit(per_minute)

    def limit(self, per_minute: int | None) -> None:
        """From now on this is the budget; what was sent without one is held against it."""
        if per_minute == self.per_minute:
            return
        sent = 0.0 if self.per_minute is not None else -self._tokens
        left = self._tokens if self.per_minute is not None else None
        self.per_minute = per_minute
        if per_minute is None:
            self._tokens = 0.0
            return
        part = max(1, per_minute // BURST_SHARE)
        self._reserve = max(LEAST_RESERVE, part)
        self.burst = self._reserve + part
        self.rate = (per_minute - self.burst) / WINDOW_SECONDS
        self._tokens = min(float(self.burst), left) if left is not None else self.burst - sent

    # ------------------------------------------------------------------ turns

    async def take(self) -> None:
        """Wait until one request may be sent (see `asking`).

        Raises:
            NotWantedError: it is not wanted any more.
        """
        need, wanted = _asking.get()
        now = self._enter()
        if (not self._waiting or need < self._waiting[0].need) and self._free_at(need, now) <= now:
            self._tokens -= 1
            return
        turn = _Turn(need, next(self._numbers), now, asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting, turn)
        self._serve()
        try:
            while not turn.given.done():
                if not wanted():
                    raise NotWantedError
                await asyncio.wait([turn.given], timeout=None if wanted is _always else LOOK_SECONDS)
            if not wanted():
                raise NotWantedError
        finally:
            if not turn.given.done():
                turn.given.cancel()
                if turn in self._waiting:
                    self._waiting.remove(turn)
                    heapq.heapify(self._waiting)
                    self._serve()

    def _enter(self) -> float:
        """The time; whoever comes from another loop than the last one finds nobody waiting."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if loop is not self._loop:
            self._loop, self._timer = loop, None
            self._waiting.clear()
            self._refilled_at = min(self._refilled_at, now)
        if self.per_minute is not None:
            self._tokens = min(float(self.burst), self._tokens + max(0.0, now - self._refilled_at) * self.rate)
        self._refilled_at = now
        return now

    def _free_at(self, need: Need, now: float) -> float:
        """When a request of that need may be sent, if nobody else is."""
        at = max(now, self._held_until[need])
        if self.per_minute is None:
            return at if need is Need.CANCEL else max(at, self._spaced_until)
        missing = 1 + (0 if need <= Need.CONFIRM else self._reserve) - self._tokens
        return max(at, now + missing / self.rate) if missing > 1e-9 else at

    def _serve(self) -> None:
        """Give the turns that are due, and come back for the next one."""
        now = self._enter()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            at = self._free_at(self._waiting[0].need, now)
            if at > now:
                self._timer = asyncio.get_running_loop().call_at(at, self._serve)
                return
            turn = heapq.heappop(self._waiting)
            self._tokens -= 1
            self._spaced_until = now + SPACING_SECONDS
            turn.given.set_result(None)

    # ------------------------------------------------------------------ turned away

    def hold(self, seconds: float | None) -> None:
        """Prefect turned a request away: nothing is sent for so long, but cancels unless it was one.

        Args:
            seconds: What it asks for; None when it does not say.
        """
        least, usual, most = HOLD_SECONDS
        now, need = self._enter(), _asking.get()[0]
        until = now + min(most, max(least, usual if seconds is None else seconds))
        for held in Need:
            if held is not Need.CANCEL or need is Need.CANCEL:
                self._held_until[held] = max(self._held_until[held], until)
        self.turned_away += 1
        self._turned_away_at = now
        words = self._slowed_words()
        if now - self._said_at >= SAID_SECONDS:
            self._said_at = now
            self._say(f"{words}.")
        if self._waiting:
            self._serve()

    def _slowed_words(self) -> str:
        times = "once" if self.turned_away == 1 else f"{self.turned_away:,} times"
        return f"Prefect asks for fewer requests: it answered HTTP 429 {times}; the job goes on, more slowly"

    # ------------------------------------------------------------------ looking

    def least_seconds(self, requests: int, share: float) -> float:
        """How far apart pieces of work of so many requests must lie to take no more than that share of the budget.

        Without a budget 0; a few seconds for a while after Prefect turned something away, unless all may be used.
        """
        if self.per_minute is not None:
            return requests / (share * self.rate)
        slowed = self._enter() - self._turned_away_at < SLOWED_SECONDS
        return SLOWED_DISTANCE_SECONDS if slowed and share < 0.5 else 0.0

    def words(self) -> str | None:
        """Why requests wait, for people; None when they do not."""
        now = self._enter()
        if now - self._turned_away_at < SLOWED_SECONDS:
            return self._slowed_words()
        if self.per_minute is None:
            return None
        if any(turn.need <= Need.CREATE and now - turn.since >= NOTICED_SECONDS for turn in self._waiting):
            return f"requests to Prefect wait for their turn: max_requests_per_minute={self.per_minute}"
        return None
