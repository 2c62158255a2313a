"""Requests to the stack's own server, by the standard library: no Prefect has to be imported to start one."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from typing import Any

from orchestrator.errors import EngineError

_BUSY_SECONDS = 10.0  # how long a busy SQLite is asked again
_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback: never through a proxy


class StackError(EngineError):
    """A part of the embedded stack did not start, or ended by itself; the text ends with the tail of its log."""


def ask(api_url: str, method: str, path: str, body: Any = None, auth: str | None = None) -> Any:
    """One HTTP request; the decoded JSON answer, None when there is none.

    Args:
        auth: `user:password`, where the server asks for it.

    Raises:
        StackError: the server cannot be reached or answers with an error.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if auth is not None:
        headers["authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()
    request = urllib.request.Request(api_url + path, data=data, method=method, headers=headers)
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            with _HTTP.open(request, timeout=30) as answer:
                text = answer.read()
            break
        except urllib.error.HTTPError as e:
            if e.code == 503 and time.monotonic() < end:
                time.sleep(0.1)  # "database is locked": rolled back, so that asking again is safe
                continue
            raise StackError(f"{method} {path}: HTTP {e.code}: {e.read()[:500]!r}") from e
        except (OSError, urllib.error.URLError) as e:
            raise StackError(f"{method} {path}: {e}") from e
    return json.loads(text) if text else None
