"""What a job can be asked to be, and what is refused before anything is looked up."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.core.killswitch import DEFAULT_FAIL_IF, DEFAULT_KILL_SWITCH, FailedCount, FailedRate
from orchestrator.core.model import StopMode
from orchestrator.errors import ConfigurationError, ExpressionError
from orchestrator.flows.request import (
    JobSpec,
    Limits,
    check_job_id,
    differences,
    find_template,
    make_spec,
    parse_pass_items_as,
)

NAME = "measure/default"


def spec(**parameters: Any) -> JobSpec:
    return make_spec(**{"deployment": NAME, **parameters})


# ---------------------------------------------------------------- what is asked


def test_what_is_not_asked_has_the_documented_defaults():
    asked = spec()
    assert (asked.batch_size, asked.max_in_flight, asked.retries) == (100, 8, 2)
    assert asked.kill_switch == str(DEFAULT_KILL_SWITCH)
    assert asked.fail_if == str(DEFAULT_FAIL_IF)
    assert asked.enough_when is None
    assert asked.stop_mode is StopMode.CANCEL
    assert asked.deployments == {None: NAME}


def test_the_default_kill_switch_is_the_one_in_the_design():
    assert spec().kill_switch == "(failed_rate > 0.5 and settled >= 50) or crashed_batches >= 3 or stalled > 3600"


@pytest.mark.parametrize(
    "same",
    ["failed >= 10", FailedCount(10), {"max_failed": 9}, Limits(max_failed=9)],
    ids=["text", "object", "mapping", "limits"],
)
def test_a_kill_switch_is_the_same_however_it_is_written(same):
    assert spec(kill_switch=same).kill_switch in ("failed >= 10", "failed > 9")


def test_limits_without_a_limit_are_no_kill_switch():
    assert spec(kill_switch={}).kill_switch is None
    assert spec(kill_switch=Limits()).kill_switch is None


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_an_empty_expression_is_none(empty):
    asked = spec(kill_switch=empty, fail_if=empty, enough_when=empty)
    assert (asked.kill_switch, asked.fail_if, asked.enough_when) == (None, None, None)
    assert asked.switch("kill_switch") is None


def test_an_expression_is_kept_in_its_canonical_form():
    asked = spec(kill_switch=FailedCount(10) | FailedRate(0.05, min_sample=200), enough_when=" succeeded>=3 ")
    assert asked.switch("kill_switch") == FailedCount(10) | FailedRate(0.05, min_sample=200)
    assert asked.enough_when == "succeeded >= 3"


@pytest.mark.parametrize("field", ["key", "select", "group_by", "weight", "work_queue_name", "job_id", "storage"])
def test_an_empty_field_of_a_form_is_no_value(field):
    assert getattr(spec(**{field: " "}), field) is None


def test_groups_have_deployments_and_a_star_is_for_every_other_group():
    asked = spec(deployment={"video": "video/gpu", "*": "measure/default"}, group_by="kind")
    assert asked.deployments == {"video": "video/gpu", None: "measure/default"}


@pytest.mark.parametrize(
    ("text", "kind", "name", "batch_size", "retries"),
    [
        ("reference", "reference", None, 100, 2),
        ("list:ids", "list", "ids", 100, 0),
        ("one:video_id", "one", "video_id", 1, 0),
        ("parameters", "parameters", None, 1, 0),
    ],
)
def test_how_items_are_passed_decides_the_size_of_batches_and_whether_they_are_tried_again(
    text, kind, name, batch_size, retries
):
    asked = spec(pass_items_as=text)
    assert (asked.pass_items.kind, asked.pass_items.name) == (kind, name)
    assert asked.effective_batch_size == batch_size
    assert asked.retries == retries
    assert spec(pass_items_as=text, batch_retries=5).retries == 5


def test_a_spec_comes_back_from_its_own_json():
    asked = spec(kill_switch=FailedCount(3), tags=["a"], parameters={"depth": 2}, group_by="kind", batch_retries=0)
    assert make_spec(**asked.to_json()) == asked


# ---------------------------------------------------------------- what is refused


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("unknown parameter", {"batchsize": 5}, "batchsize"),
    ("batch size zero", {"batch_size": 0}, "batch_size"),
    ("batch size negative", {"batch_size": -3}, "batch_size"),
    ("batch size a text", {"batch_size": "many"}, "batch_size"),
    ("batch size a fraction", {"batch_size": 1.5}, "batch_size"),
    ("batch size none", {"batch_size": None}, "batch_size"),
    ("window zero", {"max_in_flight": 0}, "max_in_flight"),
    ("window too large", {"max_in_flight": 1001}, "max_in_flight"),
    ("no deployment", {"deployment": ""}, "deployment"),
    ("half a deployment", {"deployment": "measure"}, "deployment"),
    ("empty halves", {"deployment": " / "}, "deployment"),
    ("too many halves", {"deployment": "a/b/c"}, "deployment"),
    ("deployments of nothing", {"deployment": {}}, "deployment"),
    ("deployments without groups", {"deployment": {"a": "a/b"}}, "deployment"),
    ("deployment a number", {"deployment": 7}, "deployment"),
    ("bad expression", {"kill_switch": "failed >"}, "kill_switch"),
    ("unknown name", {"kill_switch": "faild > 3"}, "kill_switch"),
    ("kill switch a number", {"kill_switch": 3}, "kill_switch"),
    ("kill switch a list", {"kill_switch": ["failed > 3"]}, "kill_switch"),
    ("bad limit", {"kill_switch": {"max_failed": -1}}, "kill_switch.max_failed"),
    ("unknown limit", {"kill_switch": {"max_fails": 1}}, "kill_switch.max_fails"),
    ("rate above one", {"kill_switch": {"max_failed_rate": 5}}, "kill_switch.max_failed_rate"),
    ("two bad limits", {"kill_switch": {"max_failed": -1, "min_sample": 0}}, "kill_switch.max_failed"),
    ("bad enough", {"enough_when": "succeeded"}, "enough_when"),
    ("bad fail_if", {"fail_if": "1 +"}, "fail_if"),
    ("fail_if a number", {"fail_if": 1}, "fail_if"),
    ("unknown mode", {"on_trip": "explode"}, "on_trip"),
    ("unknown end", {"on_parent_cancelled": "weep"}, "on_parent_cancelled"),
    ("unknown way", {"pass_items_as": "lists"}, "pass_items_as"),
    ("list of nothing", {"pass_items_as": "list:"}, "pass_items_as"),
    ("no identifier", {"pass_items_as": "list:a b"}, "pass_items_as"),
    ("named reference", {"pass_items_as": "reference:x"}, "pass_items_as"),
    ("weight without limit", {"max_weight": 3}, "max_weight"),
    ("no weight", {"max_weight": 0, "weight": "w"}, "max_weight"),
    ("no bytes", {"max_bytes": 0}, "max_bytes"),
    ("too many retries", {"batch_retries": 21}, "batch_retries"),
    ("negative retries", {"batch_retries": -1}, "batch_retries"),
    ("no time to start", {"start_timeout_seconds": 0}, "start_timeout_seconds"),
    ("no time to run", {"batch_timeout_seconds": -1}, "batch_timeout_seconds"),
    ("endless start", {"start_timeout_seconds": float("inf")}, "start_timeout_seconds"),
    ("endless run", {"batch_timeout_seconds": float("nan")}, "batch_timeout_seconds"),
    ("endless weight", {"max_weight": float("inf"), "weight": "w"}, "max_weight"),
    ("path as id", {"job_id": "../x"}, "job_id"),
    ("dots as id", {"job_id": ".."}, "job_id"),
    ("long id", {"job_id": "x" * 81}, "job_id"),
    ("two lines as id", {"job_id": "a\nb"}, "job_id"),
    ("id ends a line", {"job_id": "a\n"}, "job_id"),
    ("parameters a list", {"parameters": [1]}, "parameters"),
    ("a template", {"parameters": {"a": [{"__prefect_kind": "jinja"}]}}, "parameters"),
    ("a template in variables", {"job_variables": {"env": {"__prefect_kind": "json"}}}, "job_variables"),
    ("no JSON", {"parameters": {"a": {1, 2}}}, "parameters"),
    ("not a number", {"parameters": {"a": float("nan")}}, "parameters"),
    ("an object in variables", {"job_variables": {"a": object()}}, "job_variables"),
    ("tags a text", {"tags": "mine"}, "tags"),
    ("tags of numbers", {"tags": [1]}, "tags.0"),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "field"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_wrong_request_is_one_line_that_names_its_field(parameters, field):
    with pytest.raises(ConfigurationError) as refused:
        spec(**parameters)
    assert refused.value.field == field
    assert refused.value.exit_code == 2
    text = str(refused.value)
    assert text.startswith(f"{field}: ")
    assert len(text) < 500
    if isinstance(refused.value, ExpressionError):
        assert text.rstrip().endswith("^"), "an expression's error points at the place"
    else:
        assert "\n" not in text


def test_a_value_that_holds_itself_is_refused():
    endless: dict[str, Any] = {}
    endless["again"] = endless
    with pytest.raises(ConfigurationError, match="parameters: must be JSON"):
        spec(parameters=endless)


def test_a_large_wrong_value_is_shown_cut():
    with pytest.raises(ConfigurationError) as refused:
        spec(batch_size=["x" * 10_000])
    assert len(str(refused.value)) < 200


def test_a_misspelt_parameter_gets_near_matches():
    with pytest.raises(ConfigurationError, match="did you mean 'batch_size'"):
        spec(batchsize=5)
    with pytest.raises(ConfigurationError, match="did you mean 'max_failed'"):
        spec(kill_switch={"max_fails": 3})
    with pytest.raises(ConfigurationError, match="no such parameter; there are on_trip"):
        spec(qqqq=3)


# ---------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"__prefect_kind": "json"}, "$"),
        ({"a": {"b": [1, {"__prefect_kind": "x"}]}}, "$.a.b[1]"),
        ([[{"__prefect_kind": "x"}]], "$[0][0]"),
        (({"__prefect_kind": "x"},), "$[0]"),
        ({"a": "__prefect_kind"}, None),
        ("__prefect_kind", None),
        ({"kind": {"prefect": 1}}, None),
        (None, None),
    ],
)
def test_a_template_is_found_at_any_depth_and_only_as_a_field_name(value, where):
    assert find_template(value) == where


def test_a_very_deep_value_is_searched_too():
    deep: Any = {"__prefect_kind": "json"}
    for _ in range(5_000):
        deep = [deep]
    assert find_template(deep) is not None


# ---------------------------------------------------------------- ids, ways, differences


@pytest.mark.parametrize("good", ["a", "A-1_b.c", "x" * 80, "...a"])
def test_an_id_of_letters_digits_dots_dashes_and_underscores_is_taken(good):
    assert check_job_id(good) == good


def test_a_way_to_pass_items_says_how_parameters_are_made():
    assert parse_pass_items_as("list:ids").parameters({"depth": 2}, [1, 2]) == {"depth": 2, "ids": [1, 2]}
    assert parse_pass_items_as("one:id").parameters({}, [7]) == {"id": 7}
    assert parse_pass_items_as("parameters").parameters({"a": 1, "b": 1}, [{"b": 2}]) == {"a": 1, "b": 2}


def test_differences_name_each_field_with_both_values():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": None}) == {"b": (2, 5), "c": (3, None)}
    assert differences({"a": 1}, {"a": 1}) == {}
