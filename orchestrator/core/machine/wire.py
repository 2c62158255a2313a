"""Events, commands and setups as compact JSON values, and back, exactly: what a recorded job is written in.

An event is `[code, field, field, ...]` in the order of its fields; a value inside it (a reading, counts) is such an
array without a code. Trailing fields that have their default are left out. So a new field goes to the end of its
class and has a default: then what was recorded before still reads. Any other change of a shape raises `FORMAT`.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from enum import StrEnum
from itertools import groupby
from operator import attrgetter
from typing import Any, get_args, get_origin, get_type_hints

from orchestrator.core.killswitch import Switch, parse
from orchestrator.core.machine import events as ev
from orchestrator.core.machine.events import Command, Event
from orchestrator.core.machine.state import Setup
from orchestrator.errors import ExpressionError

FORMAT = 1  # of what is recorded; a reader refuses a newer one
MOST_BATCHES = 10_000_000  # that a recorded job may say it has

EVENT_CODES: Mapping[type, str] = {
    ev.Started: "go",
    ev.Restored: "re",
    ev.Submitted: "su",
    ev.Recalled: "rc",
    ev.SubmissionDeferred: "sd",
    ev.SubmissionLost: "sl",
    ev.SubmissionRefused: "sr",
    ev.SubmissionAbsent: "sa",
    ev.RunSeen: "rs",
    ev.RunVanished: "rv",
    ev.FellSilent: "fs",
    ev.Recalled: "rc",
    ev.Spared: "sp",
    ev.Progressed: "pr",
    ev.Closed: "cl",
    ev.CloseFailed: "cf",
    ev.StopRequested: "st",
    ev.ControlChanged: "co",
    ev.Superseded: "ss",
    ev.Ticked: "t",
}
COMMAND_CODES: Mapping[type, str] = {
    ev.Submit: "S",
    ev.Resolve: "Q",
    ev.Cancel: "X",
    ev.Recall: "R",
    ev.Recall: "R",
    ev.Close: "C",
    ev.WriteStop: "W",
    ev.Settle: "Z",
    ev.TryAgain: "A",
    ev.Finish: "F",
    ev.StandDown: "D",
}


class NewerFormatError(ValueError):
    """It was recorded by a version whose format this one does not know."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the events of one parent.

    Args:
        version: Of the package that recorded it.
        epoch: Which parent of the job, from 1.
        nonce: The job's; another job's recording under the same id is recognised by it.
    """

    setup: Setup
    version: str = ""
    epoch: int = 1
    nonce: str = ""

    def bare(self) -> Header:
        """The same without what belongs to one job."""
        return replace(self, nonce="")

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "version": self.version, "epoch": self.epoch, "nonce": self.nonce,
            "setup": setup_to_wire(self.setup),
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Any) -> Header:
        """The header.

        Raises:
            NewerFormatError: of a newer format; names both.
            ValueError: it is none.
        """
        if not isinstance(data, dict) or type(number := data.get("format")) is not int or number < 1:
            raise ValueError("no recorded events: the first line has no format")
        if number > FORMAT:
            raise NewerFormatError(
                f"recorded events have format {number}, this version reads up to format {FORMAT}; upgrade it here"
            )
        epoch = _whole(data.get("epoch"))
        return cls(setup_of_wire(data.get("setup")), _text(data.get("version")), epoch, _text(data.get("nonce")))


@dataclass(frozen=True, slots=True)
class Recorded:
    """One event as it was played.

    Args:
        number: From 1, without holes.
        at: Seconds on the job's clock, in whole milliseconds, as the machine was given them.
        commands: What it decided; None when it refused the event as impossible.
    """

    number: int
    at: float
    event: Event
    commands: Sequence[Command] | None

    def to_wire(self) -> list[Any]:
        """`[number, milliseconds, event, command, ...]`, the commands null when the event was refused."""
        commands = [None] if self.commands is None else [command_to_wire(c) for c in self.commands]
        return [self.number, round(self.at * 1000), event_to_wire(self.event), *commands]

    @classmethod
    def of_wire(cls, value: Any) -> Recorded:
        """The event and what came of it.

        Raises:
            ValueError: it is none, or holds kinds that this version does not know.
        """
        given = _list(value)
        if len(given) < 3:
            raise ValueError("a recorded event has a number, a time and an event")
        number, at = _whole(given[0]), _whole(given[1])
        if number < 1 or at < 0:
            raise ValueError("numbers of recorded events begin at 1, their times at 0")
        commands = None if given[3:] == [None] else [command_of_wire(c) for c in given[3:]]
        return cls(number, at / 1000, event_of_wire(given[2]), commands)


def event_to_wire(event: Event) -> list[Any]:
    """`[code, field, ...]`."""
    return [EVENT_CODES[type(event)], *_SHAPES[type(event)].to(event)]


def event_of_wire(value: Any) -> Event:
    """The event.

    Raises:
        ValueError: it is none, or of a kind that this version does not know.
    """
    found: Event = _coded(value, _EVENTS, "event")
    return found


def command_to_wire(command: Command) -> list[Any]:
    """`[code, field, ...]`."""
    return [COMMAND_CODES[type(command)], *_SHAPES[type(command)].to(command)]


def command_of_wire(value: Any) -> Command:
    """The command.

    Raises:
        ValueError: it is none, or of a kind that this version does not know.
    """
    found: Command = _coded(value, _COMMANDS, "command")
    return found


def setup_to_wire(setup: Setup) -> list[Any]:
    """Its fields; the counts run-length encoded: `[100, 19, 57, 1]` is nineteen times 100 and once 57."""
    runs = [n for count, same in groupby(setup.counts) for n in (count, sum(1 for _ in same))]
    return [runs, *_SHAPES[Setup].to(setup)[1:]]


def setup_of_wire(value: Any) -> Setup:
    """The setup.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, list) or not value or not isinstance(value[0], list) or len(value[0]) % 2:
        raise ValueError("a recorded setup begins with pairs of numbers")
    runs = [_whole(n) for n in value[0]]
    if any(n < 0 for n in runs) or sum(runs[1::2]) > MOST_BATCHES:
        raise ValueError("the counts of a recorded setup cannot be")
    counts = [count for count, times in zip(runs[::2], runs[1::2], strict=True) for _ in range(times)]
    found: Setup = _SHAPES[Setup].of([counts, *value[1:]])
    return found


# ------------------------------------------------------------------ shapes


@dataclass(frozen=True, slots=True)
class _Shape:
    """How values of one type are written and read; `to` None when they are JSON as they are."""

    to: Callable[[Any], Any]
    of: Callable[[Any], Any]
    plain: bool = False


def _coded(value: Any, kinds: Mapping[str, type], what: str) -> Any:
    if not isinstance(value, list) or not value or type(value[0]) is not str:
        raise ValueError(f"a recorded {what} is a list that begins with its kind")
    if (kind := kinds.get(value[0])) is None:
        raise ValueError(f"this version knows no {what} of the kind {value[0][:20]!r}")
    return _SHAPES[kind].of(value[1:])


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"expected a whole number, got {value!r:.60}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"expected a number, got {value!r:.60}")
    return float(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"expected a text, got {value!r:.60}")
    return value


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"expected true or false, got {value!r:.60}")
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError(f"expected a list, got {value!r:.60}")
    return value


def _switch(value: Any) -> Switch:
    try:
        return parse(_text(value))
    except ExpressionError as e:
        raise ValueError(f"not a kill switch: {e.reason}") from e


def _mapping(of: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise ValueError(f"expected a mapping, got {value!r:.60}")
        return {_text(k): of(v) for k, v in value.items()}

    return read


def _enum(kind: type[StrEnum]) -> Callable[[Any], StrEnum]:
    members = {member.value: member for member in kind}

    def read(value: Any) -> StrEnum:
        found = members.get(value) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f"no {kind.__name__}: {value!r:.60}")
        return found

    return read


def _same(value: Any) -> Any:
    return value


_SIMPLE: Mapping[Any, _Shape] = {
    int: _Shape(_same, _whole, plain=True),
    float: _Shape(_same, _number, plain=True),
    str: _Shape(_same, _text, plain=True),
    bool: _Shape(_same, _truth, plain=True),
    Switch: _Shape(str, _switch),
}


def _shape_of(hint: Any) -> _Shape:
    """The shape of a field's type; a type that nobody thought of is an error when this module is imported."""
    if (newtype := getattr(hint, "__supertype__", None)) is not None:
        hint = newtype
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    origin, inner = get_origin(hint), [a for a in get_args(hint) if a not in (type(None), Ellipsis)]
    if origin in (types.UnionType, typing.Union) and len(inner) == 1:
        one = _shape_of(inner[0])
        return _Shape(lambda v: None if v is None else one.to(v), lambda v: None if v is None else one.of(v), one.plain)
    if origin is tuple or origin is Sequence:
        one, make = _shape_of(inner[0]), tuple if origin is tuple else list
        return _Shape(lambda v: [one.to(x) for x in v], lambda v: make(map(one.of, _list(v))))
    if origin is Mapping:
        one = _shape_of(inner[1])
        return _Shape(dict, _mapping(one.of), plain=False)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _Shape(_same, _enum(hint), plain=True)  # a text, for JSON as for us
    if is_dataclass(hint):
        return _shape_of_class(hint)
    raise TypeError(f"nothing says how {hint!r} is recorded")


def _shape_of_class(kind: Any) -> _Shape:
    hints, slots = get_type_hints(kind), fields(kind)
    shapes = [_shape_of(hints[slot.name]) for slot in slots]
    defaults = [slot.default_factory() if slot.default_factory is not MISSING else slot.default for slot in slots]
    least = sum(default is MISSING for default in defaults)
    names = [slot.name for slot in slots]
    read = attrgetter(*names) if len(names) > 1 else None
    rewritten = [(place, shape.to) for place, shape in enumerate(shapes) if not shape.plain]

    def to(value: Any) -> list[Any]:
        found = list(read(value)) if read is not None else [getattr(value, name) for name in names]
        size = len(found)
        while size > least and found[size - 1] == defaults[size - 1]:
            size -= 1
        del found[size:]
        for place, write in rewritten:
            if place < size:
                found[place] = write(found[place])
        return found

    def of(value: Any) -> Any:
        given = _list(value)
        if not least <= len(given) <= len(shapes):
            raise ValueError(f"{kind.__name__} has {least} to {len(shapes)} fields, got {len(given)}")
        return kind(*(shape.of(v) for shape, v in zip(shapes, given, strict=False)))

    return _Shape(to, of)


_SHAPES: Mapping[type, _Shape] = {kind: _shape_of_class(kind) for kind in (*EVENT_CODES, *COMMAND_CODES, Setup)}
_EVENTS = {code: kind for kind, code in EVENT_CODES.items()}
_COMMANDS = {code: kind for kind, code in COMMAND_CODES.items()}
