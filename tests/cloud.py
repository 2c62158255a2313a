"""What stands before a server where requests are counted and a key is wanted: an HTTP proxy with both.

In front of a plain Prefect it is what a client meets at Prefect Cloud: a bearer token on every HTTP request and on
every websocket (in its header, or in the first message, as Prefect's clients do), and 429 with Retry-After beyond so
many requests in a sliding window. Each `door` is an address of its own, so that one can tell who asked; they share the
limit. Requests that are turned away do not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.support import end_other_tasks, until_one_ends

KEY = "pnu_a-key-of-the-tests"
_CHUNK = 65_536
_OPCODE_TEXT = 1


@dataclass(frozen=True)
class Asked:
    """One request that arrived, or one websocket.

    Args:
        at: Seconds of a monotonic clock.
        door: At which address.
        answer: 0 when it was passed on, else the status it was answered with.
    """

    at: float
    door: str
    method: str
    path: str
    is_websocket: bool
    answer: int


class CountingProxy:
    """Runs on a thread of its own.

    Args:
        api_url: The server's.
        key: The token that is wanted; None: none is.
        most, seconds: So many requests are passed on in any span of so many seconds; None: all.
    """

    def __init__(self, api_url: str, *, key: str | None = None, most: int | None = None, seconds: float = 60.0) -> None:
        parts = urlsplit(api_url)
        self._host, self._port = parts.hostname, parts.port
        self.key, self.most, self.seconds = key, most, seconds
        self.asked: list[Asked] = []
        self._passed: deque[float] = deque()
        self._use_up: tuple[str, int] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="counting proxy", daemon=True)
        self._servers: dict[str, asyncio.Server] = {}
        # asyncio holds neither the task nor the reader of a connection whose client went away while the server's answer
        # is waited for: collected as garbage, it would be destroyed in the middle.
        self._serving: set[asyncio.Task[Any] | None] = set()

    # ------------------------------------------------------------------ what tests ask

    def door(self, name: str) -> str:
        """The API's URL at that door."""

        async def listen() -> asyncio.Server:
            return await asyncio.start_server(lambda r, w: self._serve(name, r, w), "127.0.0.1", 0)

        if name not in self._servers:
            self._servers[name] = asyncio.run_coroutine_threadsafe(listen(), self._loop).result(30)
        return f"http://127.0.0.1:{self._servers[name].sockets[0].getsockname()[1]}/api"

    def limit_now(self, use_up: tuple[str, int] | None = None) -> None:
        """Forget what was asked so far: a test's own preparation is no part of what it counts.

        Args:
            use_up: Once so many requests were passed on at that door, others have used the limit up, once.
        """

        async def forget() -> None:
            self.asked.clear()
            self._passed.clear()
            self._use_up = use_up

        asyncio.run_coroutine_threadsafe(forget(), self._loop).result(30)

    def of(self, door: str, answer: int | None = None) -> list[Asked]:
        """What came to a door, by how it was answered."""
        return [asked for asked in list(self.asked) if asked.door == door and answer in (None, asked.answer)]

    def count(self, door: str) -> Counter[int]:
        """Answers at a door: 0 for what was passed on."""
        return Counter(asked.answer for asked in self.of(door))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        async def end() -> None:
            for server in self._servers.values():
                server.close()
            await end_other_tasks()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ------------------------------------------------------------------ inside the loop

    async def _serve(self, door: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._serving.add(task)
        try:
            await self._one(door, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await writer.wait_closed()
            self._serving.discard(task)

    async def _one(self, door: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        is_websocket = headers.get("upgrade", "").lower() == "websocket"
        by_message = is_websocket and "authorization" not in headers and "sec-websocket-protocol" in headers
        if self._use_up is not None and door == self._use_up[0] and self.count(door)[0] >= self._use_up[1]:
            self._use_up = None
            self._passed.extend([time.monotonic()] * ((self.most or 0) - len(self._passed)))
        answer = self._judge(headers, by_message)
        now = time.monotonic()
        self.asked.append(Asked(now, door, method, path, is_websocket, answer))
        if answer:
            writer.write(self._refusal(answer, now))
            await writer.drain()
            return
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        try:
            if is_websocket:
                # Uncompressed: the first message is read here.
                plain = [line for line in lines if line and not line.lower().startswith("sec-websocket-extensions:")]
                up_writer.write("\r\n".join([*plain, "", ""]).encode("latin-1"))
                await until_one_ends(self._upwards(reader, up_writer, by_message), _pump(up_reader, writer))
                return
            kept = [line for line in lines if line and not line.lower().startswith("connection:")]
            up_writer.write("\r\n".join([*kept, "Connection: close", "", ""]).encode("latin-1") + body)
            await up_writer.drain()
            while data := await up_reader.read(_CHUNK):
                writer.write(data)
                await writer.drain()
        finally:
            up_writer.close()

    def _judge(self, headers: dict[str, str], by_message: bool) -> int:
        if self.key is not None and not by_message:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or token != self.key:
                return 401
        if self.most is None:
            return 0
        now = time.monotonic()
        self._forget(now)
        if len(self._passed) >= self.most:
            return 429
        self._passed.append(now)
        return 0

    def _forget(self, now: float) -> None:
        while self._passed and now - self._passed[0] >= self.seconds:
            self._passed.popleft()

    def _refusal(self, status: int, now: float) -> bytes:
        words, more = {401: ("Unauthorized", ""), 429: ("Too Many Requests", "")}[status]
        if status == 429:
            free = self._passed[0] + self.seconds - now if self._passed else 0.0
            more = f"Retry-After: {max(1, math.ceil(free))}\r\n"
        return f"HTTP/1.1 {status} {words}\r\n{more}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()

    async def _upwards(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, by_message: bool) -> None:
        """From the client; what says who it is must hold the key, or the connection ends."""
        if by_message and self.key is not None:
            seen = b""
            while (text := first_text(seen)) is None:
                if not (data := await reader.read(_CHUNK)):
                    return
                seen += data
                if first_text(seen) is None:  # pings come first, and want their answer
                    writer.write(data)
                    await writer.drain()
                else:
                    last = data
            said: Any = json.loads(text)
            if said.get("type") != "auth" or said.get("token") != self.key:
                self.asked.append(Asked(time.monotonic(), "refused", "WS", "auth", True, 401))
                return
            writer.write(last)
        await _pump(reader, writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


def first_text(data: bytes) -> bytes | None:
    """The first text message among frames of a client; None when none is whole yet. Source: RFC 6455, 5.2."""
    at = 0
    while len(data) - at >= 2:
        opcode, length, start = data[at] & 0x0F, data[at + 1] & 0x7F, at + 2
        if length == 126:
            length, start = int.from_bytes(data[start : start + 2]), start + 2
        elif length == 127:
            length, start = int.from_bytes(data[start : start + 8]), start + 8
        mask, start = data[start : start + 4], start + 4
        if len(data) < start + length:
            return None
        if opcode == _OPCODE_TEXT:
            return bytes(byte ^ mask[i % 4] for i, byte in enumerate(data[start : start + length]))
        at = start + length
    return None


@contextmanager
def counting(
    api_url: str, *, key: str | None = None, most: int | None = None, seconds: float = 60.0
) -> Iterator[CountingProxy]:
    """A proxy before that API until the block ends."""
    proxy = CountingProxy(api_url, key=key, most=most, seconds=seconds)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


def most_within(times: Sequence[float], seconds: float) -> int:
    """Most of these moments that lie in any span of so many seconds."""
    times, most, first = sorted(times), 0, 0
    for last, at in enumerate(times):
        while at - times[first] > seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def as_cloud(url: str, key: str = KEY) -> dict[str, str]:
    """The settings with which Prefect's clients take that address for Prefect Cloud.

    Source: prefect client/orchestration/__init__.py, events/clients.py: the address begins with PREFECT_CLOUD_API_URL.
    """
    return {"PREFECT_API_URL": url, "PREFECT_CLOUD_API_URL": url, "PREFECT_API_KEY": key}
