"""One long-lived connection to Prefect's API: paced, counted, quickly retried, its errors translated.

Prefect's client retries by itself after 2, 4, 8 ... seconds, which is right for an outage and wrong for the brief
"database is locked" of SQLite. Calls made through here therefore switch those retries off and retry at once.
Source: prefect client/base.py `_send_with_retry`, 3.8.8.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.context import SettingsContext, get_settings_context
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES

from orchestrator.engine.masking import Masker
from orchestrator.engine.pace import NotWantedError, Pace, is_urgent
from orchestrator.engine.translate import (
    TOO_MANY,
    BusyError,
    is_foreign,
    is_passing,
    is_unreachable,
    translate,
    was_turned_away,
)
from orchestrator.errors import EngineUnavailableError, InternalError

T = TypeVar("T")

READ_PAUSES = (0.2, 0.6, 1.5)
_LONGEST_PAUSE, _LONGEST_URGENT_PAUSE = 60.0, 4.0
_PATIENCE_SECONDS = 600.0  # with a server that answers nothing but 429
_BUSY = frozenset({408, 429, 502, 503})
_quick: ContextVar[bool] = ContextVar("quick", default=False)


class Connection:
    """A `PrefectClient` opened at the first call and kept; used from one event loop only.

    Args:
        masker: Masks what errors say.
        pace: Says when a request may be sent; by default whenever Prefect lets it.

    Attributes:
        requests: HTTP requests sent so far, retries included (and what others add: websockets).
    """

    def __init__(self, masker: Masker, pace: Pace | None = None) -> None:
        self.masker = masker
        self.pace = pace or Pace()
        self.requests = 0
        self._client: PrefectClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack = AsyncExitStack()
        self._settings: SettingsContext | None = None

    async def client(self) -> PrefectClient:
        """The open client.

        Raises:
            EngineUnavailableError: no API URL is configured.
        """
        if self._client is not None:
            if self._loop is not asyncio.get_running_loop():
                raise InternalError("a connection to Prefect is used from two event loops")
            return self._client
        if not PREFECT_API_URL.value():
            # Prefect would start a server of its own here, one without workers.
            raise EngineUnavailableError(
                "no Prefect server is configured: set PREFECT_API_URL, choose a profile, or try `orchestrator demo`."
            )
        hooks = {"request": [self._count], "response": [self._turn_away]}
        client = get_client(httpx_settings={"event_hooks": hooks})
        self._client, self._loop = client, asyncio.get_running_loop()
        await self._stack.enter_async_context(client)
        return client

    async def call(
        self, doing: str, function: Callable[[PrefectClient], Awaitable[T]], pauses: Sequence[float] = READ_PAUSES
    ) -> T:
        """What the function answers, tried again after each pause as long as that can help.

        Raises:
            ObjectNotFound: Prefect's, untouched: what it means depends on the question.
            NotWantedError: it was given up while it waited for its turn; see `pace.asking`.
            EngineUnavailableError, EngineError: see `translate`.
        """
        client = await self.client()
        loop = asyncio.get_running_loop()
        left, patient_until = iter((*pauses, None)), loop.time() + _PATIENCE_SECONDS
        while True:
            try:
                with self.quick():
                    return await function(client)
            except NotWantedError:
                raise
            except Exception as error:
                if isinstance(error, ObjectNotFound) and not is_foreign(error):
                    raise
                if was_turned_away(error) and loop.time() < patient_until:
                    continue  # no failure: the pace holds the next one back for as long as Prefect wants
                pause = next(left)
                if pause is None or not is_passing(error) or is_unreachable(error):
                    raise translate(error, doing, self.masker) from error
                await asyncio.sleep(pause_before_retry(error, pause))

    @contextmanager
    def quick(self) -> Iterator[None]:
        """Within: the client reports a busy server or a lost connection at once, without retries of its own."""
        if self._settings is None:
            context = get_settings_context()
            settings = context.settings.copy_with_update(updates={PREFECT_CLIENT_MAX_RETRIES: 0})
            self._settings = SettingsContext(profile=context.profile, settings=settings)
        token = _quick.set(True)
        try:
            with self._settings.model_copy():
                yield
        finally:
            _quick.reset(token)

    async def close(self) -> None:
        await self._stack.aclose()
        self._client = None

    async def take_turn(self) -> None:
        """Wait until one more may be sent, and count it: for what does not go through the client, as a websocket."""
        await self.pace.take()
        self.requests += 1

    def turned_away(self, status: int, headers: Mapping[str, str]) -> None:
        """A request or a websocket was answered so: where that means too many, nothing is sent for a while."""
        if status == TOO_MANY:
            self.pace.hold(_retry_after(headers))

    async def _count(self, request: httpx.Request) -> None:
        await self.take_turn()

    async def _turn_away(self, response: httpx.Response) -> None:
        self.turned_away(response.status_code, response.headers)
        if _quick.get() and response.status_code in _BUSY:
            # Prefect answers in JSON. Source: prefect server/api/server.py `custom_internal_exception_handler`, 3.8.8.
            is_prefects = response.headers.get("Content-Type", "").startswith("application/json")
            raise BusyError(response.status_code, _retry_after(response.headers), is_prefects=is_prefects)


def pause_before_retry(error: BaseException, pause: float) -> float:
    """Seconds to wait: what the server asks for, else `pause` with jitter, so that many callers do not meet again.

    A stop has half a minute: it asks again sooner than a server that is busy may want (one that counts requests says so
    by another answer, which `Pace` takes).
    """
    if isinstance(error, BusyError) and error.retry_after is not None:
        longest = _LONGEST_URGENT_PAUSE if is_urgent() else _LONGEST_PAUSE
        return min(longest, error.retry_after) * random.uniform(1.0, 1.2)
    return pause * random.uniform(0.5, 1.5)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, which it may also say as a date; None when it says neither."""
    said = headers.get("Retry-After", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
