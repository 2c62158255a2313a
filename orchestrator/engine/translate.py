"""Prefect's and httpx's errors as ours, once and here; the text says what to do about it.

Source for which errors a client raises: prefect client/base.py and exceptions.py, 3.8.8.
"""

from __future__ import annotations

from json import JSONDecodeError

import httpx
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from orchestrator.engine.masking import Masker
from orchestrator.errors import EngineError, EngineUnavailableError, OrchestratorError

TOO_MANY = 429
_REASON_CHARS = 500
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_FORBIDDEN = frozenset({401, 403})


class BusyError(Exception):
    """The server says that it cannot serve now; raised before the client's own slow retries begin.

    Args:
        status: 408, 429, 502 or 503.
        retry_after: Seconds the server asks to wait; None when it does not say.
        is_prefects: Prefect itself says so, no proxy: what was asked for is not under way any more.
    """

    def __init__(self, status: int, retry_after: float | None, *, is_prefects: bool = False) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.retry_after, self.is_prefects = status, retry_after, is_prefects


def is_unreachable(error: BaseException) -> bool:
    """Whether there was no connection at all; the client has tried for a second or two by then."""
    return isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))


def is_passing(error: BaseException) -> bool:
    """Whether asking again later can help."""
    if is_foreign(error):
        return True
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _PASSING
    return isinstance(error, (BusyError, httpx.TransportError, httpx.StreamError, OSError))


def was_never_sent(error: BaseException) -> bool:
    """Whether it is certain that the request did nothing."""
    return isinstance(error, _NEVER_SENT) or was_turned_away(error)


def was_turned_away(error: BaseException) -> bool:
    """Whether the server did nothing because it was asked too often."""
    return (isinstance(error, BusyError) and error.status == TOO_MANY) or status_of(error) == TOO_MANY


def is_foreign(error: BaseException) -> bool:
    """Whether a 404 is not Prefect's: a proxy's, while it has no server behind it. Nothing is known to be missing then.

    Source: prefect server/api/server.py and its routes, 3.8.8: each 404 of theirs has one of these two fields.
    """
    answer = _answer(error)
    if answer is None or answer.status_code != 404:
        return False
    try:
        said = answer.json()
    except (ValueError, httpx.StreamError):
        return True
    return not (isinstance(said, dict) and {"detail", "exception_message"} & said.keys())


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of Prefect's, or of ours that was raised from one."""
    answer = _answer(error)
    return None if answer is None else answer.status_code


def _answer(error: BaseException) -> httpx.Response | None:
    causes = (error, error.http_exc if isinstance(error, ObjectNotFound) else None, error.__cause__)
    found = (seen for seen in causes if isinstance(seen, httpx.HTTPStatusError))
    return next((seen.response for seen in found), None)


def reason(error: BaseException, masker: Masker) -> str:
    """What Prefect says was wrong, on one line, masked and cut."""
    text = str(error) or type(error).__name__
    if isinstance(error, httpx.HTTPStatusError):
        try:
            detail = error.response.json()
        except (ValueError, httpx.StreamError):
            detail = None
        text = f"HTTP {error.response.status_code}: {_detail(detail)}" if detail else text
    line = " ".join(masker(text).split())
    return line if len(line) <= _REASON_CHARS else line[: _REASON_CHARS - 1] + "…"


def _detail(answer: object) -> str:
    """The words in an error answer of Prefect's; the values it echoes are left out, they may be large or secret."""
    if not isinstance(answer, dict):
        return str(answer)
    said = answer.get("detail") or answer.get("exception_message") or ""
    problems = answer.get("exception_detail")
    if isinstance(problems, list):
        words = [str(p.get("msg")) for p in problems[:3] if isinstance(p, dict)]
        return " ".join([str(said), "; ".join(words)])
    return str(said or answer)


def api_address(masker: Masker) -> str:
    """The API's URL as it may be shown."""
    return masker(str(PREFECT_API_URL.value() or "no API URL"))


def translate(error: Exception, doing: str, masker: Masker) -> OrchestratorError:
    """Our error for one of Prefect's; the caller raises it `from` the cause.

    Args:
        doing: What was tried, to fill "cannot ...", e.g. "read child runs".
    """
    if isinstance(error, OrchestratorError):
        return error
    said, where = reason(error, masker), api_address(masker)
    if isinstance(error, _NEVER_SENT):
        return EngineUnavailableError(
            f"cannot {doing}: Prefect's API at {where} cannot be reached ({said}); "
            "start the server, or point PREFECT_API_URL at one that runs."
        )
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in _FORBIDDEN:
        return EngineError(
            f"cannot {doing}: Prefect's API at {where} refuses the credentials ({said}); "
            "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY."
        )
    if isinstance(error, ValidationError):
        return EngineError(
            f"cannot {doing}: the answer of Prefect's API at {where} cannot be understood; "
            "is the server of another version than this client? `orchestrator doctor` says."
        )
    if isinstance(error, JSONDecodeError) or status_of(error) == 404:
        # A proxy's page in an outage, or the UI's where the API was meant.
        return EngineUnavailableError(
            f"cannot {doing}: what answers at {where} is not Prefect's API ({said}); "
            "is PREFECT_API_URL right? It usually ends in /api."
        )
    if is_passing(error):
        return EngineUnavailableError(f"cannot {doing}: Prefect's API at {where} does not serve now ({said}).")
    if isinstance(error, PrefectHTTPStatusError):
        return EngineError(f"cannot {doing}: Prefect refused ({said}).")
    return EngineError(f"cannot {doing}: {type(error).__name__}: {said}")
