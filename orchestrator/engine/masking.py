"""Secrets leave in nothing that we write: their values are replaced before a text goes anywhere.

Secret are the values of Prefect's own SecretStr settings (API key, auth string, database password), tokens in the
headers that its clients are told to send, the environment variables a setting of ours names, the credentials of blocks
that were read, and the user info of any URL.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from pydantic import BaseModel, Secret, SecretStr

MASK = "********"
SHORTEST = 4  # a shorter value would mask innocent text everywhere
_LINE = 12  # a single line of a secret of several (a private key) is secret too, from this length on
_SECRET_HEADERS = ("auth", "cookie", "key", "secret", "token")
_USER_INFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.\-]*://)[^/\s'\"<>@]+@")


class Masker:
    """Replaces what is secret; compiled once (and when a secret was learnt), cheap for every text after that.

    Args:
        names: Environment variables whose values are secret too.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = tuple(names)
        self._compile()

    def _compile(self) -> None:
        learnt = _learnt
        values = {os.environ.get(name, "") for name in self._names}
        values.update(_known_secrets(), learnt)
        forms = {form for value in values if len(value) >= SHORTEST for form in _forms(value)}
        longest_first = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
        self._secrets = re.compile(longest_first) if forms else None
        # Looks without moving on, so that two secrets that overlap in a text are both found.
        self._each = re.compile(f"(?=({longest_first}))") if forms else None
        self._learnt = learnt

    def __call__(self, text: str) -> str:
        if self._learnt is not _learnt:
            self._compile()
        if self._secrets is not None and self._each is not None and self._secrets.search(text):
            text = _without(text, (found.span(1) for found in self._each.finditer(text)))
        return _USER_INFO.sub(rf"\g<scheme>{MASK}@", text) if "://" in text else text

    def value(self, value: Any) -> Any:
        """The same JSON value with every text in it masked, keys included."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return value


class MaskedLogger(logging.LoggerAdapter[Any]):
    """A logger whose lines are masked once their parts are put together."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[Any], mask: Callable[[str], str]) -> None:
        super().__init__(logger, {})
        self._mask = mask

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        text = str(msg) % args if args else str(msg)
        self.logger.log(level, "%s", self._mask(text), **kwargs)


def mask(text: str, names: Sequence[str] = ()) -> str:
    """The text with all secrets masked, by the settings and environment of this moment."""
    return masker(tuple(names))(text)


def keep_secret(values: Iterable[str]) -> None:
    """Mask these values too, from now on and wherever this process masks."""
    global _learnt
    if new := {value for value in values if len(value) >= SHORTEST} - _learnt:
        _learnt = _learnt | new


def masker(names: tuple[str, ...]) -> Masker:
    """The masker for those names; kept as long as their values and Prefect's settings stay what they are."""
    now = (_prefect_settings(), [os.environ.get(name) for name in names])
    kept = _kept.get(names)
    if kept is None or kept[0] is not now[0] or kept[1] != now[1]:
        kept = _kept[names] = (*now, Masker(names))
    return kept[2]


def too_short(names: Sequence[str]) -> list[str]:
    """Those of the environment variables whose values are too short to be masked."""
    return [name for name in names if 0 < len(os.environ.get(name, "")) < SHORTEST]


_kept: dict[tuple[str, ...], tuple[Any, list[str | None], Masker]] = {}
_learnt: frozenset[str] = frozenset()  # replaced, never changed: maskers of other threads go through it


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text with each stretch that the spans cover together replaced by one mask."""
    parts: list[str] = []
    done = 0
    stretch: tuple[int, int] | None = None
    for start, end in (*spans, (len(text), len(text))):
        if stretch is not None and start < stretch[1]:
            stretch = stretch[0], max(stretch[1], end)
            continue
        if stretch is not None:
            parts += [text[done : stretch[0]], MASK]
            done = stretch[1]
        stretch = start, end
    return "".join([*parts, text[done:]])


def _prefect_settings() -> Any:
    """Prefect's settings; None in a process that has not imported it, and therefore knows none of its secrets."""
    if "prefect.context" not in sys.modules:
        return None
    from prefect.settings import get_current_settings

    return get_current_settings()


def _known_secrets() -> Iterator[str]:
    settings = _prefect_settings()
    if settings is not None:
        yield from _setting_secrets(settings)
        yield from _header_secrets(settings.client.custom_headers)
        return
    for name in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"):
        yield from _parts(os.environ.get(name, ""))
    try:
        yield from _header_secrets(json.loads(os.environ.get("PREFECT_CLIENT_CUSTOM_HEADERS") or "{}"))
    except (ValueError, AttributeError):
        pass  # Prefect refuses it, too


def _header_secrets(headers: Mapping[str, Any]) -> Iterator[str]:
    """Of `Authorization: Bearer TOKEN` the token; Prefect takes such headers for no secret."""
    for name, value in headers.items():
        if any(word in name.lower() for word in _SECRET_HEADERS):
            yield from (str(value), str(value).rpartition(" ")[2])


def _setting_secrets(settings: BaseModel) -> Iterator[str]:
    for name in type(settings).model_fields:
        value = getattr(settings, name, None)
        if isinstance(value, BaseModel):
            yield from _setting_secrets(value)
        elif isinstance(value, (SecretStr, Secret)):
            yield from _parts(str(value.get_secret_value()))


def _parts(secret: str) -> Iterator[str]:
    """What is secret of a setting's value: of a URL its password, of user:password the whole and the password."""
    if "://" in secret:
        try:
            password = urlsplit(secret).password
        except ValueError:
            yield secret
            return
        if password:
            yield password
            yield unquote(password)
        return
    yield secret
    user, colon, password = secret.partition(":")
    if colon and user:
        yield password
        yield base64.b64encode(secret.encode()).decode()  # as it travels in a header of basic auth


def _forms(value: str) -> Iterator[str]:
    """The value as it may stand in a text: plain, on one line, inside JSON, Python, HTML, a URL."""
    yield value
    if len(flat := " ".join(value.split())) >= SHORTEST:
        yield flat  # texts are put on one line before they are written
    yield from (line for line in value.splitlines() if len(line.strip()) >= _LINE)
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield json.dumps(json.dumps(value)[1:-1])[1:-1]  # JSON in a text in JSON
    yield repr(value)[1:-1]
    yield html.escape(value)
    for quoted in (
        quote(value, safe="", errors="replace"),
        quote(value, errors="replace"),
        quote_plus(value, errors="replace"),
    ):
        yield quoted
        yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quoted)
