"""JSON as we write it: one value per line, strict UTF-8, nothing that another language could not read back.

The standard encoder turns the key `1` into `"1"`, accepts NaN and knows nothing of lines; items and results pass
through here instead, so that what is read back equals what was given.
"""

from __future__ import annotations

import json
import math
from typing import Any

_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=True, separators=(",", ":")).encode
_ascii = json.JSONEncoder(ensure_ascii=True, allow_nan=False, check_circular=True, separators=(",", ":")).encode


class NotJsonError(ValueError):
    """A value that JSON cannot hold; the text names the place in it and what stands there."""


def encode_json(value: Any, *, parsed: bool = False) -> bytes:
    """One value as compact JSON bytes without a newline.

    Args:
        value: None, bool, int, finite float, str, list or tuple, dict with text keys; at any depth.
        parsed: It came out of a JSON parser, so that its types need no check (its numbers do: `1e999`).

    Raises:
        NotJsonError: it holds anything else.
    """
    try:
        if not parsed:
            _check(value, "")
        text = _compact(value)
    except NotJsonError:
        raise
    except RecursionError:
        raise NotJsonError("is nested too deeply") from None
    except ValueError as e:
        _check(value, "")  # names the place of a NaN
        raise NotJsonError(f"cannot be written as JSON: {e}") from e
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: legal in JSON as an escape only
        return _ascii(value).encode()


def decode_json(data: bytes | str) -> Any:
    """The value of one JSON text; NaN and Infinity are refused.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return DECODER.decode(data if isinstance(data, str) else data.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; use null")


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)  # `json.loads` with an option makes a new one per call


def _check(value: Any, path: str) -> None:
    if value is None or isinstance(value, str | bool | int):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotJsonError(f"{_at(path)}{value} is not JSON; use null")
    elif isinstance(value, list | tuple):
        for number, member in enumerate(value):
            _check(member, f"{path}[{number}]")
    elif isinstance(value, dict):
        for key, member in value.items():
            if not isinstance(key, str):
                raise NotJsonError(f"{_at(path)}the key {key!r} is {_article(key)}, and JSON has text keys only")
            _check(member, f"{path}.{key}" if path else key)
    else:
        raise NotJsonError(
            f"{_at(path)}{_article(value)} is not JSON; give text, numbers, true, false, null, lists and mappings only"
        )


def _at(path: str) -> str:
    return f"at {path[:100]}: " if path else ""


def _article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
