"""A TCP proxy that misbehaves on command: one before each kind of client, so that each can be cut off alone.

Unlike the one of the contract tests, which orders one fault per request, this one passes everything on, websockets
included, and what goes wrong goes wrong for all connections at once, for as long as it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Callable
from enum import StrEnum

from tests.support import end_other_tasks, until_one_ends

_CHUNK = 65_536
_HEAD_SECONDS = 30.0
_ANSWERS = {
    "503": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    "429": b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
}


class Mode(StrEnum):
    PASS = "pass"
    REFUSE = "refuse"  # nobody listens
    BLACKHOLE = "blackhole"  # connections are taken, and nothing comes through in either direction
    DELAY = "delay"  # every piece of data waits
    BUSY = "503"
    TOO_MANY = "429"


class _Connection:
    """One client's connection, and ours to the server."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.client = writer
        self.server: asyncio.StreamWriter | None = None
        self.is_websocket = False

    def abort(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                writer.transport.abort()


class Proxy:
    """Runs on a thread of its own; every method may be called from any thread.

    Attributes:
        hit: Connections that were cut, refused an answer, or answered by the proxy itself, so far.
    """

    def __init__(self, upstream_port: int) -> None:
        self._upstream = upstream_port
        self._mode = Mode.PASS
        self._delay = 0.0
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.port = 0
        self.hit = 0

    @property
    def url(self) -> str:
        """The API's URL through this proxy."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def connected(self) -> int:
        """Connections there are now."""
        return len(self._connections)

    def start(self) -> None:
        self._thread.start()
        self._do(self._listen)

    def stop(self) -> None:
        if self._loop.is_closed():
            return
        self._do(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def set(self, mode: Mode, *, delay: float = 0.0) -> None:
        """From now on; what is connected is cut where the mode is about answers, so that everybody meets it."""

        async def change() -> None:
            before, self._mode, self._delay = self._mode, mode, delay
            if mode is Mode.REFUSE:
                await self._hush()
            elif before is Mode.REFUSE:
                await self._listen()
            if mode in (Mode.REFUSE, Mode.BUSY, Mode.TOO_MANY) or before is Mode.BLACKHOLE:
                self._abort(lambda c: True)
            if mode in (Mode.BLACKHOLE, Mode.DELAY):
                self.hit += len(self._connections)

        self._do(change)

    def cut(self) -> None:
        """Reset every connection there is; new ones are welcome."""

        async def now() -> None:
            self._abort(lambda c: True)

        self._do(now)

    def close_websockets(self, code: int = 1001) -> None:
        """End each websocket the way a server does that goes away: with a close frame."""

        async def now() -> None:
            frame = b"\x88\x02" + struct.pack("!H", code)
            for connection in [c for c in self._connections if c.is_websocket]:
                self.hit += 1
                connection.client.write(frame)
                with contextlib.suppress(OSError):
                    await asyncio.wait_for(connection.client.drain(), 1.0)
                connection.client.close()
                if connection.server is not None:
                    connection.server.transport.abort()

        self._do(now)

    # ------------------------------------------------------------------ inside the loop

    def _do(self, work: Callable[[], object]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(timeout=30)  # type: ignore[arg-type]

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _hush(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _end(self) -> None:
        await self._hush()
        self._abort(lambda c: True)
        await end_other_tasks()

    def _abort(self, which: Callable[[_Connection], bool]) -> None:
        for connection in [c for c in self._connections if which(c)]:
            self.hit += 1
            connection.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            await self._one(connection, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(connection)
            connection.abort()

    async def _one(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode is Mode.BLACKHOLE:
            self.hit += 1
            await self._until_open()
            return
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_SECONDS)
        if (answer := _ANSWERS.get(self._mode.value)) is not None:
            self.hit += 1
            with contextlib.suppress(asyncio.IncompleteReadError):
                await asyncio.wait_for(reader.readexactly(_length(head)), _HEAD_SECONDS)
            writer.write(answer)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            return
        connection.is_websocket = b"upgrade: websocket" in head.lower()
        up_reader, connection.server = await asyncio.open_connection("127.0.0.1", self._upstream)
        connection.server.write(head)
        await until_one_ends(self._pump(reader, connection.server), self._pump(up_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if self._mode is Mode.DELAY:
                await asyncio.sleep(self._delay)
            await self._until_open()
            writer.write(data)
            await writer.drain()

    async def _until_open(self) -> None:
        while self._mode is Mode.BLACKHOLE:
            await asyncio.sleep(0.1)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0
