"""Spans of time and sizes as people write and read them."""

from __future__ import annotations

import re

from orchestrator.errors import ConfigurationError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_SPAN = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*([smhdw])?")


def parse_span(text: str, field: str) -> float:
    """Seconds of a span such as `90s`, `30m`, `12h`, `30d`, `8w`; `0` needs no unit.

    Raises:
        ConfigurationError: it is none.
    """
    match = _SPAN.fullmatch(text.strip().lower())
    if match is None or (match[2] is None and float(match[1]) != 0):
        raise ConfigurationError(f"{text[:40]!r} is no span of time; write 12h, 30d or 8w", field=field)
    return float(match[1]) * _UNITS[match[2] or "s"]


def span_text(seconds: float) -> str:
    """A span in the unit that fits it: `40 s`, `12 min`, `3 h`, `31 days`."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h" if seconds < 48 * 3_600 else f"{seconds / 86_400:,.0f} days"


def size_text(size: int) -> str:
    """Bytes in the unit that fits them."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} B"
