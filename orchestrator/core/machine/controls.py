"""What operators change while a job runs: wishes from the job folder, and what holds after all of them.

The machine and everybody who looks at a folder fold wishes in the same way, so that `status` shows what the parent does
or, while it is away, what it will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.killswitch import Switch, parse
from orchestrator.core.machine.events import ControlChanged
from orchestrator.errors import ConfigurationError

SHOWN_CHANGES = 20  # the latest: a job may be scaled by a program for days
_TEXT = 200


@dataclass(slots=True)
class Standing:
    """What holds now.

    Args:
        window: Most child runs at once, >= 1.
        paused_by: Who paused it, since when and why; "" while it is not paused.
        changes: The latest changes, one line each, oldest first.
        latest: Those of the last wish.
    """

    window: int
    kill_switch: Switch | None = None
    paused: bool = False
    paused_by: str = ""
    changes: list[str] = field(default_factory=list)
    latest: list[str] = field(default_factory=list)

    def apply(self, wish: ControlChanged) -> list[str]:
        """Take a wish in; gives the lines that say what it changed, none for one that changes nothing."""
        self.latest = self._changed(wish)
        self.changes = [*self.changes, *self.latest][-SHOWN_CHANGES:]
        return self.latest

    def _changed(self, wish: ControlChanged) -> list[str]:
        asked = _asked(wish)
        said = []
        if wish.max_in_flight is not None and wish.max_in_flight != self.window:
            said.append(f"max_in_flight changed from {self.window:,} to {wish.max_in_flight:,}{asked}")
            self.window = max(1, wish.max_in_flight)
        if wish.paused is not None and wish.paused != self.paused:
            said.append(("paused" if wish.paused else "went on") + asked)
            self.paused, self.paused_by = wish.paused, asked.strip() if wish.paused else ""
        if wish.no_kill_switch and self.kill_switch is not None:
            said.append(f"kill switch taken away{asked}")
            self.kill_switch = None
        elif wish.kill_switch is not None and wish.kill_switch != self.kill_switch:
            said.append(f"kill switch changed to {wish.kill_switch}{asked}")
            self.kill_switch = wish.kill_switch
        return said


def _asked(wish: ControlChanged) -> str:
    """` by ada on box at 2025-01-01 12:00:00 UTC (why)`, as far as it is known."""
    parts = [f"by {wish.who}" if wish.who else "", f"at {wish.asked}" if wish.asked else ""]
    parts.append(f"({wish.reason})" if wish.reason else "")
    return "".join(f" {part}" for part in parts if part)


def read_control(data: Mapping[str, Any]) -> tuple[ControlChanged, list[str]]:
    """A control of the job folder as an event, and what of it makes no sense (which changes nothing).

    Args:
        data: As read; empty when it could not be read at all.
    """
    wrong: list[str] = []
    if not data:
        wrong.append("it cannot be read")
    window, paused, text = data.get("max_in_flight"), data.get("paused"), data.get("kill_switch")
    if window is not None and not (type(window) is int and 1 <= window <= 1000):
        wrong.append(f"max_in_flight must be 1 to 1000, not {_shown(window)}")
        window = None
    if paused is not None and not isinstance(paused, bool):
        wrong.append(f"paused must be true or false, not {_shown(paused)}")
        paused = None
    switch: Switch | None = None
    if text is not None:
        try:
            switch = parse(text) if isinstance(text, str) else None
        except ConfigurationError:
            switch = None
        if switch is None:
            wrong.append(f"kill_switch is no expression: {_shown(text)}")
    none = "kill_switch" in data and text is None
    if data and not wrong and window is None and paused is None and switch is None and not none:
        wrong.append("it asks for nothing that is known")
    event = ControlChanged(
        max_in_flight=window, paused=paused, kill_switch=switch, no_kill_switch=none,
        who=_line(data.get("who")), asked=_line(data.get("asked")), reason=_line(data.get("reason")),
    )  # fmt: skip
    return event, wrong


def _line(value: object) -> str:
    return "".join(c for c in " ".join(value.split()) if c.isprintable())[:_TEXT] if isinstance(value, str) else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
