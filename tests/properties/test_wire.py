"""Whatever a parent records is read back as it was."""

from __future__ import annotations

import contextlib
import types
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.killswitch import Switch, parse
from orchestrator.core.machine import Setup, wire
from orchestrator.store import decode_json, encode_json

SWITCHES = ["failed >= 10", "failed_rate > 0.05 and settled >= 200", 'errors["ValueError"] > 3 or not stalled < 60']
finite = st.floats(allow_nan=False, allow_infinity=False)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type; floats that JSON can hold, switches that parse."""
    if getattr(hint, "__supertype__", hint) is Switch:
        return st.sampled_from(SWITCHES).map(parse)
    if hint is float:
        return finite
    inner = [a for a in get_args(hint) if a not in (type(None), Ellipsis)]
    if get_origin(hint) is types.UnionType:
        return st.none() | values(inner[0])
    if get_origin(hint) is tuple:
        return st.lists(values(inner[0]), max_size=3).map(tuple)
    if hasattr(hint, "__dataclass_fields__"):
        return built(hint)
    return st.from_type(hint)


def built(kind: type) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{name: values(hint) for name, hint in get_type_hints(kind).items()})


def through_text(value: Any) -> Any:
    return decode_json(encode_json(value, parsed=True))


@pytest.mark.parametrize("kind", wire.EVENT_CODES, ids=lambda kind: kind.__name__)
def test_every_event_is_read_back_as_it_was(kind: type) -> None:
    @settings(max_examples=25)
    @given(built(kind))
    def round_trip(event: Any) -> None:
        assert wire.event_of_wire(through_text(wire.event_to_wire(event))) == event

    round_trip()


@pytest.mark.parametrize("kind", wire.COMMAND_CODES, ids=lambda kind: kind.__name__)
def test_every_command_is_read_back_as_it_was(kind: type) -> None:
    @settings(max_examples=25)
    @given(built(kind))
    def round_trip(command: Any) -> None:
        assert wire.command_of_wire(through_text(wire.command_to_wire(command))) == command

    round_trip()


counts = st.lists(st.integers(0, 3) | st.integers(0, 10**6), max_size=40)


@given(
    st.builds(
        Setup,
        counts,
        **{name: values(hint) for name, hint in get_type_hints(Setup).items() if name != "counts"},
    )
)
def test_a_setup_is_read_back_as_it_was(setup: Setup) -> None:
    header = wire.Header(setup, "1.2.3", 4, "nonce")
    assert wire.Header.from_json(through_text(header.to_json())) == header


events = st.sampled_from(list(wire.EVENT_CODES)).flatmap(built)
commands = st.sampled_from(list(wire.COMMAND_CODES)).flatmap(built)


@given(
    st.integers(1, 10**9),
    st.integers(0, 10**11),
    events,
    st.none() | st.lists(commands, max_size=3),
)
def test_a_moment_is_read_back_to_the_very_number_that_the_machine_was_given(number, milliseconds, event, decided):
    at = round(milliseconds / 1000, 3)
    recorded = wire.Recorded(number, at, event, decided)
    assert wire.Recorded.of_wire(through_text(recorded.to_wire())) == recorded


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
codes = st.sampled_from([*wire.EVENT_CODES.values(), *wire.COMMAND_CODES.values()])


@given(json_values | st.builds(lambda code, rest: [code, *rest], codes, st.lists(json_values, max_size=6)))
def test_whatever_stands_there_is_read_or_refused_and_nothing_else_comes_of_it(value: Any) -> None:
    for read in (wire.event_of_wire, wire.command_of_wire, wire.setup_of_wire, wire.Recorded.of_wire, header_of):
        with contextlib.suppress(ValueError):
            read(value)


def header_of(setup: Any) -> wire.Header:
    return wire.Header.from_json({"format": 1, "version": "", "epoch": 1, "nonce": "", "setup": setup})
