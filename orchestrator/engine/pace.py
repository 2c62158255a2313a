"""How fast a parent asks Prefect: within a budget of requests per minute, and no faster than Prefect wants (HTTP 429).

One `Pace` belongs to one parent; every request takes its turn here just before it is sent, tries again included. The
budget is a token bucket. With a burst of `b` and a refill of `r` per second no span of `WINDOW_SECONDS` sees more than
`b + r * WINDOW_SECONDS` requests; `r` is chosen so that this is the budget itself, in whatever minute one counts.

Turns are given by need, then in order: whoever cancels child runs waits for nobody, and a few tokens are kept back for
that; reading what became of children comes before creating more of them (a kill switch must not be blind while a large
window fills); pages and waits take what is left, for reading alone is enough. Where the tokens are spent, as after many
requests that were sent before the budget was known, a cancel still goes out at once when the minute has room for it:
what was sent in the last minute is remembered for that, and the others pay it back.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

T = TypeVar("T")

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


def is_urgent() -> bool:
    """Whether what is asked for now stops child runs, or confirms that they stop."""
    return _asking.get()[0] <= Need.CONFIRM


async def reading(ask: Callable[[], Awaitable[T]], stopping: Callable[[], bool]) -> T:
    """The answer to a reading. Once child runs are to be stopped it is wanted to confirm that: one that waits for its
    turn then is given up and asked anew, as what is urgent."""
    while True:
        stops = stopping()

        def is_as_urgent(stops: bool = stops) -> bool:
            return stopping() == stops

        try:
            with asking(Need.CONFIRM if stops else Need.READ, is_as_urgent):
                return await ask()
        except NotWantedError:
            continue


@dataclass(order=True, slots=True)
class _Turn:
    need: Need
    number: int
    since: float = field(compare=False)
    given: asyncio.Future[None] = field(compare=False)


class Pace:
    """Gives turns; used from one event loop at a time, or from several once it is shared.

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
        self._home: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.per_minute: int | None = None
        self._tokens, self._refilled_at, self._reserve, self.burst, self.rate = 0.0, 0.0, 0, 0, 0.0
        self._sent: deque[float] = deque()  # when, of those of the last minute
        self._is_new = False  # the budget: what was sent before it is not held against it yet
        self._begins = False  # nor will be
        self.limit(per_minute)

    def limit(self, per_minute: int | None) -> None:
        """From now on this is the budget; what was sent without one in the last minute is held against it."""
        if per_minute == self.per_minute:
            return
        self._is_new = per_minute is not None and (self._is_new or self.per_minute is None)
        self.per_minute = per_minute
        if per_minute is None:
            return
        part = max(1, per_minute // BURST_SHARE)
        self._reserve = max(LEAST_RESERVE, part)
        self.burst = self._reserve + part
        self.rate = (per_minute - self.burst) / WINDOW_SECONDS
        self._tokens = min(float(self.burst), self._tokens)

    def lower(self, per_minute: int | None) -> None:
        """From now on the budget is no more than this; one that comes to where there was none begins now.

        What all jobs sent before would else hold up the cancels of all of them, for a minute, for the sake of one.
        """
        if per_minute is not None and (self.per_minute is None or per_minute < self.per_minute):
            begins = self.per_minute is None
            self.limit(per_minute)
            self._begins = self._begins or begins

    def share(self) -> None:
        """From now on turns are given in the loop that runs; whoever asks in another thread's loop waits for it there.

        For one budget of several parents. The loop must go on as long as they do.
        """
        self._home = asyncio.get_running_loop()

    def _elsewhere(self) -> asyncio.AbstractEventLoop | None:
        """The loop in which turns are given, where that is not the one that runs."""
        if self._home is None or self._home.is_closed() or self._home is asyncio.get_running_loop():
            return None
        return self._home

    # ------------------------------------------------------------------ turns

    async def take(self) -> None:
        """Wait until one request may be sent (see `asking`).

        Raises:
            NotWantedError: it is not wanted any more.
        """
        if (home := self._elsewhere()) is not None:  # what it is for goes along, in its context
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._take(), home))
        else:
            await self._take()

    async def _take(self) -> None:
        need, wanted = _asking.get()
        now = self._enter()
        if (not self._waiting or need < self._waiting[0].need) and self._free_at(need, now) <= now:
            self._send(now)
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
            self._sent = deque(min(at, now) for at in self._sent)
        while self._sent and now - self._sent[0] >= WINDOW_SECONDS:
            self._sent.popleft()
        if self._begins:
            self._sent.clear()
        if self._is_new or self._begins:
            self._tokens, self._is_new, self._begins = float(self.burst - len(self._sent)), False, False
        elif self.per_minute is not None:
            self._tokens = min(float(self.burst), self._tokens + max(0.0, now - self._refilled_at) * self.rate)
        self._refilled_at = now
        return now

    def _send(self, now: float) -> None:
        """One more is sent."""
        self._tokens -= 1
        self._sent.append(now)

    def _free_at(self, need: Need, now: float) -> float:
        """When a request of that need may be sent, if nobody else is."""
        at = max(now, self._held_until[need])
        if self.per_minute is None:
            return at if need is Need.CANCEL else max(at, self._spaced_until)
        missing = 1 + (0 if need <= Need.CONFIRM else self._reserve) - self._tokens
        if missing <= 1e-9:
            return at
        due = now + missing / self.rate
        if need <= Need.CONFIRM:  # as soon as the minute has room for it, whatever was spent before
            over = len(self._sent) - self.per_minute
            due = min(due, now if over < 0 else self._sent[over] + WINDOW_SECONDS)
        return max(at, due)

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
            self._send(now)
            self._spaced_until = now + SPACING_SECONDS
            turn.given.set_result(None)

    # ------------------------------------------------------------------ turned away

    def hold(self, seconds: float | None) -> None:
        """Prefect turned a request away: nothing is sent for so long, but cancels unless it was one.

        Args:
            seconds: What it asks for; None when it does not say.
        """
        if (home := self._elsewhere()) is not None:
            home.call_soon_threadsafe(self._hold, seconds)
        else:
            self._hold(seconds)

    def _hold(self, seconds: float | None) -> None:
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
        slowed = self._now() - self._turned_away_at < SLOWED_SECONDS
        return SLOWED_DISTANCE_SECONDS if slowed and share < 0.5 else 0.0

    def _now(self) -> float:
        return self._enter() if self._elsewhere() is None else asyncio.get_running_loop().time()

    def words(self) -> str | None:
        """Why requests wait, for people; None when they do not."""
        now = self._now()
        if now - self._turned_away_at < SLOWED_SECONDS:
            return self._slowed_words()
        if self.per_minute is None:
            return None
        if any(turn.need <= Need.CREATE and now - turn.since >= NOTICED_SECONDS for turn in self._waiting):
            return f"requests to Prefect wait for their turn: max_requests_per_minute={self.per_minute}"
        return None
