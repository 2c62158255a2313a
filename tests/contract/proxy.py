"""A small HTTP proxy before a real server, for tests of what a connection can do wrong: one fault per request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from urllib.parse import urlsplit


class Fault(StrEnum):
    BUSY = "503"
    TOO_MANY = "429"
    LOST_ANSWER = "lost_answer"  # passed on and carried out; the connection is cut instead of an answer
    LOST_REQUEST = "lost_request"  # cut before anything is passed on
    HTML = "html"  # a proxy's page, with status 200
    NO_ROUTE = "404"
    FOREIGN = "404 of a proxy"  # that has no server behind it just now
    NOT_ALLOWED = "405"
    UNAUTHORIZED = "401"


_ANSWERS = {
    Fault.BUSY: b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    Fault.TOO_MANY: b"HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    Fault.HTML: b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html></html>",
    Fault.UNAUTHORIZED: b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    Fault.NO_ROUTE: b'HTTP/1.1 404 Not Found\r\nContent-Length: 22\r\nConnection: close\r\n\r\n{"detail":"Not Found"}',
    Fault.FOREIGN: b"HTTP/1.1 404 Not Found\r\nContent-Length: 18\r\nConnection: close\r\n\r\n404 page not found",
    Fault.NOT_ALLOWED: b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
}


class Proxy:
    """Attributes:
    url: API URL that goes through it.
    script: What becomes of the next requests whose path contains `only`; None lets one pass.
    seen: (method, path, had a fault) of each request that matched `only`.
    """

    def __init__(self, upstream: str, url: str, only: str) -> None:
        self._host, self._port = urlsplit(upstream).hostname, urlsplit(upstream).port
        self.url, self.only = url, only
        self.script: deque[Fault | None] = deque()
        self.always: Fault | None = None
        self.seen: list[tuple[str, str, Fault | None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        fault = None
        if self.only in path:
            fault = self.script.popleft() if self.script else self.always
            self.seen.append((method, path, fault))
        if fault in _ANSWERS:
            writer.write(_ANSWERS[fault])
            await writer.drain()
            return
        if fault is Fault.LOST_REQUEST:
            return
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        try:
            kept = [line for line in lines if line and not line.lower().startswith("connection:")]
            up_writer.write("\r\n".join([*kept, "Connection: close", "", ""]).encode("latin-1") + body)
            await up_writer.drain()
            answer = await up_reader.read(-1)
        finally:
            up_writer.close()
        if fault is not Fault.LOST_ANSWER:
            writer.write(answer)
            await writer.drain()


@asynccontextmanager
async def proxied(api_url: str, only: str, make: type[Proxy] = Proxy) -> AsyncIterator[Proxy]:
    """A proxy before that API; `only` picks the requests that faults befall, by a part of their path."""
    proxy = make(api_url, "", only)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api"
    async with server:
        yield proxy
