"""Errors: one root, sorted by who must act; texts that say the remedy; facts that survive pickling."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest

from orchestrator import errors
from orchestrator.core.model import Verdict
from orchestrator.core.report import BatchCounts, ItemCounts, KillSwitchReport, Report
from orchestrator.errors import (
    ConfigurationError,
    DeploymentNotFoundError,
    EngineError,
    ExpressionError,
    InternalError,
    JobConflictError,
    JobError,
    JobFailedError,
    JobTakenOverError,
    OrchestratorError,
    SourceError,
    StorageError,
    SubmissionUnknownError,
)

ALL = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, OrchestratorError)]
REPORT = Report("j", Verdict.FAILED, False, "r", "d/e", 1.0, ItemCounts(0, 0, 0, 0, 0),
                BatchCounts(0, 0, 0, 0, 0, 0, 0), KillSwitchReport(None))  # fmt: skip
EXAMPLES: list[OrchestratorError] = [
    ConfigurationError("must be positive", field="batch_size"),
    ConfigurationError("no field at all"),
    ExpressionError("expected a number", text="failed >= x", position=10, field="kill_switch"),
    SourceError("not JSON", source="a.jsonl", line=3),
    StorageError("cannot be written"),
    JobConflictError("exists", differences={"batch_size": (1, 2)}),
    JobTakenOverError("job 'j' was taken over by parent run brave-owl"),
    DeploymentNotFoundError("a/b", ["a/c"]),
    SubmissionUnknownError("lost", key="j/n/0/0"),
    JobFailedError("failed", report=REPORT),
]


@pytest.mark.parametrize("kind", ALL, ids=lambda c: c.__name__)
def test_each_error_ends_in_error_and_says_who_must_act(kind):
    assert kind.__name__.endswith("Error")
    assert kind.__doc__
    families = {ConfigurationError: 2, EngineError: 3, JobError: (1, 4), InternalError: 1}
    codes = next((code for family, code in families.items() if issubclass(kind, family)), 1)
    assert kind.exit_code in (codes if isinstance(codes, tuple) else (codes,))


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("way", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy],
                         ids=["pickle", "copy", "deepcopy"])  # fmt: skip
def test_an_error_keeps_its_facts_through_a_pickle(error, way):
    again: Any = way(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_field_stands_before_the_message():
    assert str(ConfigurationError("must be positive", field="batch_size")) == "batch_size: must be positive"
    assert str(ConfigurationError("nothing to do")) == "nothing to do"


def test_a_source_is_named_with_its_line():
    assert str(SourceError("not JSON", source="a.jsonl", line=3)) == "items: a.jsonl, line 3: not JSON"
    assert str(SourceError("empty", source="a.jsonl")) == "items: a.jsonl: empty"


@pytest.mark.parametrize(("near", "words"), [(["a/c"], "did you mean 'a/c'?"), (["a/c", "a/d"], "'a/c' or 'a/d'"),
                                             ([], "prefect deployment ls")])  # fmt: skip
def test_a_deployment_that_is_not_there_says_what_is(near, words):
    assert words in str(DeploymentNotFoundError("a/b", near))


def test_an_expression_error_points_at_the_place():
    said = str(ExpressionError("expected a number", text="failed >= x", position=10)).splitlines()
    assert said[1].index("x") == said[2].index("^")


def test_of_a_long_expression_only_the_neighbourhood_is_shown():
    text = "failed >= 1 or\n" * 100 + "nonsense" + " and failed >= 1" * 100
    error = ExpressionError("unknown name", text=text, position=text.index("nonsense"))
    _, shown, caret = str(error).splitlines()
    assert len(shown) < 130
    assert shown[caret.index("^") :].startswith("nonsense")


def test_an_expression_error_can_be_told_of_another_field():
    error = ExpressionError("expected a number", text="x", position=0).with_field("fail_if")
    assert error.field == "fail_if"
    assert str(error).startswith("fail_if: expected")
