"""Flows that are not batch flows, unchanged: their run's state speaks for their items."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import orchestrate_sync
from orchestrator.errors import ConfigurationError
from orchestrator.stack import Stack
from tests.integration import job_flows
from tests.integration.job_support import MARKS, Watched, check, deploy

pytestmark = MARKS


def test_a_flow_that_takes_a_list(stack: Stack, job: Watched) -> None:
    deployed = deploy(job_flows.takes_a_list, "takes_a_list", "default")
    request = {**job.request, "parameters": {**job.parameters, "fail_on": 12}}
    report = orchestrate_sync(
        deployed, range(10, 14), batch_size=2, max_in_flight=2, pass_items_as="list:ids", kill_switch=None,
        on_failure="return", **request,
    )  # fmt: skip
    assert [run["parameters"]["ids"] for run in job.children()] == [[10, 11], [12, 13]]
    assert [run["state_type"] for run in job.children()] == ["COMPLETED", "FAILED"]
    assert job.outcome_words() == ["succeeded", "succeeded", "failed", "failed"]
    assert (report.items.succeeded, report.items.failed, report.failed_by_rule) == (2, 2, True)
    assert [(e.type, e.count) for e in report.errors] == [("ChildRunFailed", 2)]


def test_a_flow_that_takes_one_item_and_a_crash_is_unknown_and_not_tried_again(
    stack: Stack, job: Watched, tmp_path: Path
) -> None:
    deployed = deploy(job_flows.takes_one, "takes_one", "default")
    what = [{"n": 0}, {"n": 1, "fail": "ValueError"}, {"n": 2, "die_once": str(tmp_path / "died")}]
    report = orchestrate_sync(
        deployed, what, max_in_flight=2, pass_items_as="one:video", kill_switch=None, on_failure="return", **job.request
    )
    check(job, report, max_in_flight=2)
    assert [run["state_type"] for run in job.children()] == ["COMPLETED", "FAILED", "CRASHED"]
    assert job.outcome_words() == ["succeeded", "failed", "unknown"]
    assert sorted(job.started()) == [0, 1, 2]
    assert (report.batches.completed, report.batches.failed, report.batches.crashed) == (1, 1, 1)


def test_a_flow_whose_parameters_are_the_item(stack: Stack, job: Watched) -> None:
    deployed = deploy(job_flows.takes_parameters, "takes_parameters", "default")
    wrong = [{"name": "a", "times": 1}, {"name": "b", "tmies": 2}]
    with pytest.raises(ConfigurationError, match="tmies"):
        orchestrate_sync(deployed, wrong, pass_items_as="parameters", **job.request)
    with pytest.raises(ConfigurationError, match="__prefect_kind"):
        orchestrate_sync(
            deployed, [{"name": {"__prefect_kind": "json"}, "times": 1}], pass_items_as="parameters", **job.request
        )
    assert job.children() == []
    report = orchestrate_sync(
        deployed, [{"name": "a", "times": 1}, {"name": "b", "times": 2}], max_in_flight=2, pass_items_as="parameters",
        **job.request,
    )  # fmt: skip
    assert report.items.succeeded == 2
    assert sorted((line["index"], line["times"]) for line in job.trace("start")) == [("a", 1), ("b", 2)]
