"""Secrets leave in nothing that we write: their values are replaced before a text goes anywhere.

Secret are the values of Prefect's own SecretStr settings (API key, auth string, database password), of the environment
variables a setting of ours names, and the user info of any URL.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from prefect.settings import get_current_settings
from pydantic import BaseModel, Secret, SecretStr

MASK = "********"
_SHORTEST = 4  # a shorter value would mask innocent text everywhere
_USER_INFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.\-]*://)[^/\s'\"<>@]+@")


class Masker:
    """Replaces what is secret; compiled once, cheap for every text after that.

    Args:
        names: Environment variables whose values are secret too.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        values = {os.environ.get(name, "") for name in names}
        values.update(_setting_secrets(get_current_settings()))
        forms = {form for value in values for form in _forms(value) if len(form) >= _SHORTEST}
        longest_first = sorted(forms, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        if self._secrets is not None:
            text = self._secrets.sub(MASK, text)
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


def mask(text: str, names: Sequence[str] = ()) -> str:
    """The text with all secrets masked, by the settings and environment as they were at the first call for `names`."""
    return _masker(tuple(names))(text)


@lru_cache(maxsize=16)
def _masker(names: tuple[str, ...]) -> Masker:
    return Masker(names)


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
    """The value as it may stand in a text: plain, inside JSON, inside a URL."""
    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield quote(value, safe="")
