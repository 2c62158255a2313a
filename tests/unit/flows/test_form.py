"""What the form of the parent's deployment shows, and how what comes back from it is read."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from orchestrator.errors import ConfigurationError
from orchestrator.flows.form import SOURCES, Asked, Range, read_advanced, read_items
from orchestrator.flows.parent import orchestrate_flow


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    made: dict[str, Any] = parameter_schema(orchestrate_flow).model_dump_for_openapi()
    return made


def test_every_source_is_a_tab_with_a_name_of_its_own(schema: dict[str, Any]) -> None:
    items = schema["properties"]["items"]
    assert "discriminator" not in items, "one of Prefect's UIs draws a JSON editor for it"
    titles = [schema["definitions"][ref["$ref"].rpartition("/")[2]]["title"] for ref in items["anyOf"]]
    assert titles == [source.model_config.get("title") for source in SOURCES]
    assert len(set(titles)) == len(titles)


def test_no_field_is_a_pair_of_tabs_and_each_is_described(schema: dict[str, Any]) -> None:
    assert all(p["description"] for p in schema["properties"].values())
    for name in ("Advanced", "Limits", *(s.__name__ for s in SOURCES)):
        for field, shown in schema["definitions"][name]["properties"].items():
            assert "anyOf" not in shown, (name, field)
            assert shown["description"], (name, field)
            assert shown["title"] == field


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"path": "a.csv"}, Asked({"kind": "file", "path": "a.csv"}, None)),
        ({"stop": 3}, Asked({"kind": "range", "start": 0, "stop": 3}, None)),
        (Range(stop=3), Asked({"kind": "range", "start": 0, "stop": 3}, None)),
        ({"results_of": "first"}, Asked({"kind": "results", "job": "first"}, None)),
        (
            {"job": "first", "outcome": ["failed"]},
            Asked({"kind": "job", "job": "first", "outcome": ["failed"], "again": False}, None),
        ),
        ({"resume": "first"}, Asked(None, "first")),
        ({"kind": "glob", "pattern": "*"}, Asked({"kind": "glob", "pattern": "*"}, None)),
        ("range:0:3", Asked("range:0:3", None)),
        ([1, 2], Asked([1, 2], None)),
    ],
    ids=str,
)
def test_a_source_is_told_by_its_fields(given: Any, asked: Asked) -> None:
    assert read_items(given) == asked


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "items: say where they come from"),
        ({}, "items: say where they come from"),
        ({"path": ""}, "items: say where they come from"),
        ({"items": "a, b"}, r"items\.items: Input should be a valid list, got 'a, b'"),
        ({"stop": 3, "path": "a.csv"}, r"items\.stop: Extra inputs are not permitted"),
        ({"job": "first", "outcome": ["lost"]}, r"items\.outcome\.0: "),
    ],
    ids=str,
)
def test_what_is_no_source_is_refused_on_one_line(given: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{said}") as refused:
        read_items(given)
    assert "\n" not in str(refused.value)


def test_fields_left_empty_keep_their_defaults() -> None:
    assert read_advanced(None) == read_advanced({}) == read_advanced({"key": "", "max_bytes": None})
    assert read_advanced({"fail_if": ""})["fail_if"] is None, "empty: it never fails"


@pytest.mark.parametrize(
    "given", [{"nonsense": 1}, {"batch_retries": 99}, {"on_trip": "explode"}, "everything"], ids=str
)
def test_a_wrong_advanced_field_is_named(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^advanced"):
        read_advanced(given)
