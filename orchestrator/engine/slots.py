"""Slots of Prefect's concurrency limits, held by one run and handed from one of its items to the next.

Prefect's `concurrency()` gives a slot back to the server after each use, and whoever waits asks again when the server
tells it to, up to 30 s later, one asker per process: with a limit of 4 and three runs, slots were in use for a quarter
of the time. Here a slot goes to the next item of the same run at once, without a request, so that a limit's slots are
busy as long as any run has items. After `KEEP_SECONDS` it is given back between two items: other runs get a turn.
Source: server/api/concurrency_limits_v2.py `_generate_concurrency_locked_response`, concurrency/services.py, 3.8.8.

A lease says that the run lives; without renewal the server takes its slots back. Leases in the server's memory (its
default) do not survive a restart, while the count of slots in its database does: such a slot is given back by count.
Source: server/concurrency/lease_storage/memory.py, server/services/repossessor.py, 3.8.8.
"""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.context import SettingsContext, get_settings_context
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES

from orchestrator.errors import ConfigurationError, OrchestratorError

KEEP_SECONDS = 60.0  # that a run hands a slot on to itself
LEASE_SECONDS = 120.0
_RENEW_SECONDS = 30.0
_SOONEST_ASK, _LATEST_ASK = 0.4, 3.0
_YIELD_SECONDS = 1.0  # before a run asks again for a slot that it gave up for others
_TROUBLE_SECONDS = 5.0
_BUSY_SECONDS = 0.2  # SQLite is locked, for a moment


class BusyError(Exception):
    """The server answers 503: its database is locked."""


class NotWaitingError(OrchestratorError):
    """The run is over, or may start nothing more: nobody waits for slots any longer."""


class LimitsClient(Protocol):
    """What is asked of Prefect: `SyncPrefectClient` has it."""

    def increment_concurrency_slots(self, names: list[str], slots: int, mode: Any) -> httpx.Response: ...

    def increment_concurrency_slots_with_lease(
        self, names: list[str], slots: int, mode: Any, lease_duration: float, holder: Any = None
    ) -> httpx.Response: ...

    def renew_concurrency_lease(self, lease_id: UUID, lease_duration: float) -> httpx.Response: ...

    def release_concurrency_slots_with_lease(self, lease_id: UUID) -> httpx.Response: ...

    def release_concurrency_slots(self, names: list[str], slots: int, occupancy_seconds: float) -> httpx.Response: ...


@dataclass(eq=False, slots=True)
class Slot:
    """One slot of each of the pool's limits.

    Args:
        taken, renewed: When the server gave it, and last confirmed it (`time.monotonic`).
        lost: The server does not know it any more.
    """

    lease: UUID
    taken: float
    renewed: float
    lost: bool = False


class _Line(ABC):
    """Items of one run that wait for some limits, and the thread that asks for them; from any thread.

    Args:
        names: The limits.
        connect: A client of its own for that thread.
        say: Takes debug lines.
    """

    def __init__(self, names: Sequence[str], connect: Callable[[], AbstractContextManager[LimitsClient]],
                 *, say: Callable[[str], None] = lambda line: None) -> None:  # fmt: skip
        self._names, self._connect, self._say = list(names), connect, say
        self._changed = threading.Condition()
        self._waiting: deque[Future[Any]] = deque()
        self._next_ask = 0.0
        self._open, self._closed = True, False
        self._thread: threading.Thread | None = None

    def ask(self) -> Future[Any]:
        """What is waited for, some time; cancel the future to stop waiting.

        The future raises `ConfigurationError` when a limit is missing, `NotWaitingError` after `stop_waiting`.
        """
        future: Future[Any] = Future()
        with self._changed:
            if not self._open:
                future.set_exception(NotWaitingError("no limits are waited for any more"))
                return future
            self._waiting.append(future)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="batch-limits", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return future

    def stop_waiting(self) -> None:
        """Whoever waits gets `NotWaitingError`, now and from now on; what is held stays held."""
        with self._changed:
            self._open = False
            self._refuse(NotWaitingError("no limits are waited for any more"))
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """The run is over; what is left to do gets so long at most."""
        self.stop_waiting()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)

    @abstractmethod
    def _take(self, client: LimitsClient) -> None:
        """Ask the server once, for whoever has waited longest."""

    # ------------------------------------------------------------------ with the lock

    def _hand(self, value: Any) -> bool:
        """Give it to whoever has waited longest."""
        while self._waiting:
            future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                future.set_result(value)
                return True
        return False

    def _refuse(self, error: Exception) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _refuse_missing(self, limits: Any) -> bool:
        """A limit was deleted while the run lasts: nobody gets anything."""
        missing = sorted(set(self._names) - {limit["name"] for limit in limits})
        if missing:
            text = f"there is no limit {', '.join(map(repr, missing))} any more"
            self._refuse(ConfigurationError(text, field="concurrency_limits"))
        return bool(missing)

    def _next(self) -> tuple[Callable[[LimitsClient], None] | None, float | None]:
        """What to do now; or else how long there is nothing to do, None for until something changes."""
        if not self._waiting:
            return None, None
        left = self._next_ask - time.monotonic()
        return (self._take, 0.0) if left <= 0 else (None, left)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        with self._connect() as client:
            while True:
                with self._changed:
                    do, seconds = self._next()
                    if do is None:
                        if self._closed:
                            return
                        self._changed.wait(seconds)
                        continue
                try:
                    do(client)
                except BusyError:
                    self._pause(random.uniform(0.5, 1.5) * _BUSY_SECONDS)
                except Exception as error:  # noqa: BLE001 - the API is away: items wait, held slots stay held
                    self._say(f"Waiting for limits: {type(error).__name__}: {error}")
                    self._pause(_TROUBLE_SECONDS)

    def _pause(self, seconds: float) -> None:
        with self._changed:
            until = time.monotonic() + seconds
            while not self._closed and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)


class RateLine(_Line):
    """Items that wait for limits with a slot decay: `ask()` brings None when one more may start.

    A denial makes the server forget what had decayed since the last one, so it is asked when it says, no sooner.
    Source: server/models/concurrency_limits_v2.py `bulk_update_denied_slots`, 3.8.8.
    """

    def _take(self, client: LimitsClient) -> None:
        try:
            limits = client.increment_concurrency_slots(self._names, 1, "rate_limit").json()
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.LOCKED:
                raise
            with self._changed:
                self._next_ask = time.monotonic() + float(error.response.headers.get("Retry-After", 1))
            return
        with self._changed:
            if not self._refuse_missing(limits):
                self._hand(None)


class SlotPool(_Line):
    """The slots that one run holds of some limits: `ask()` brings a `Slot`, to be given back.

    Args:
        holder: Who holds the slots, for people who look at the limit.
    """

    def __init__(self, names: Sequence[str], connect: Callable[[], AbstractContextManager[LimitsClient]],
                 *, holder: Any = None, say: Callable[[str], None] = lambda line: None) -> None:  # fmt: skip
        super().__init__(names, connect, say=say)
        self._holder = holder
        self._held: set[Slot] = set()
        self._returned: deque[Slot] = deque()
        self._denied_since: float | None = None

    def give_back(self, slot: Slot) -> None:
        """The item is over: the next one of this run gets the slot, or the server."""
        with self._changed:
            if slot not in self._held:
                return  # the pool was closed
            kept = time.monotonic() - slot.taken
            if self._open and not slot.lost and kept < KEEP_SECONDS and self._hand(slot):
                return
            self._held.discard(slot)
            self._returned.append(slot)
            if self._waiting:
                self._next_ask = time.monotonic() + (0.0 if slot.lost else _YIELD_SECONDS)
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Give everything back, for so long at most; what cannot be given back ends with its lease."""
        with self._changed:
            self._returned.extend(self._held)
            self._held.clear()
        super().close(seconds)

    def _next(self) -> tuple[Callable[[LimitsClient], None] | None, float | None]:
        if self._returned:
            slot = self._returned.popleft()
            return (lambda client: self._release(client, slot)), 0.0
        due = min((s for s in self._held if not s.lost), key=lambda s: s.renewed, default=None)
        if due is None:
            return super()._next()
        renew_in = due.renewed + _RENEW_SECONDS - time.monotonic()
        if renew_in <= 0:
            return (lambda client: self._renew(client, due)), 0.0
        do, seconds = super()._next()
        return do, renew_in if seconds is None else min(seconds, renew_in)

    def _take(self, client: LimitsClient) -> None:
        began = time.monotonic()
        try:
            answer = client.increment_concurrency_slots_with_lease(
                self._names, 1, "concurrency", LEASE_SECONDS, self._holder
            ).json()
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.LOCKED:
                raise
            with self._changed:
                # The server advises by how long slots are held; what counts here is that none is left lying: of the
                # time that others hold them, a tenth at most.
                now = time.monotonic()
                self._denied_since = self._denied_since or now
                self._next_ask = now + min(_LATEST_ASK, max(_SOONEST_ASK, (now - self._denied_since) / 10))
            return
        slot = Slot(UUID(answer["lease_id"]), began, began)
        with self._changed:
            self._denied_since, self._next_ask = None, 0.0
            self._held.add(slot)
            if self._refuse_missing(answer["limits"]) or not self._hand(slot):
                self._held.discard(slot)
                self._returned.append(slot)

    def _renew(self, client: LimitsClient, slot: Slot) -> None:
        began = time.monotonic()
        try:
            client.renew_concurrency_lease(slot.lease, LEASE_SECONDS)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (httpx.codes.GONE, httpx.codes.NOT_FOUND):
                raise
            slot.lost = True
            self._say("A concurrency slot was lost with its lease")
        else:
            slot.renewed = began

    def _release(self, client: LimitsClient, slot: Slot) -> None:
        try:
            if not slot.lost:
                self._renew(client, slot)  # the server's release says nothing of a lease that it does not know
            now = time.monotonic()
            if not slot.lost:
                client.release_concurrency_slots_with_lease(slot.lease)
            elif now - slot.renewed < LEASE_SECONDS:  # it cannot have expired: a restart forgot the lease, not the slot
                client.release_concurrency_slots(self._names, 1, max(0.1, now - slot.taken))
        except BusyError:
            with self._changed:
                self._returned.append(slot)  # once more: `close` waits for it
            raise
        except Exception:
            with self._changed:
                # Beyond that the server takes it back by itself.
                if not self._closed and time.monotonic() - slot.renewed < LEASE_SECONDS:
                    self._returned.append(slot)
            raise


@contextmanager
def impatient_client() -> Iterator[LimitsClient]:
    """A client that reports a busy server and a lost connection at once.

    Prefect's own waits 2, 4, 8 seconds and asks again, while slots lie idle and leases run out; and where only the
    answer was lost, asking again takes a second slot. Source: client/base.py `_send_with_retry`, 3.8.8.
    """

    def turn_away(response: httpx.Response) -> None:
        if response.status_code in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS):
            raise BusyError(f"{response.status_code} from {response.url.path}")

    context = get_settings_context()
    settings = context.settings.copy_with_update(updates={PREFECT_CLIENT_MAX_RETRIES: 0})
    with (
        SettingsContext(profile=context.profile, settings=settings),
        get_client(sync_client=True, httpx_settings={"event_hooks": {"response": [turn_away]}}) as client,
    ):
        yield client
