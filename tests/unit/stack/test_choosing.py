"""Some deployments of a `prefect.yaml`: chosen by the names under which Prefect will know them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.stack.api import StackError
from orchestrator.stack.choosing import only
from orchestrator.stack.own import OWN

ROOT = Path(__file__).parents[3]


def chosen(tmp_path: Path, *names: str) -> list[str]:
    """The entrypoints of what is left."""
    copy = only(ROOT / "prefect.yaml", names, tmp_path)
    return [entry["entrypoint"] for entry in yaml.safe_load(copy.read_text())["deployments"]]


@pytest.mark.parametrize("own", OWN, ids=lambda own: own.name)
def test_those_of_this_package_go_by_the_name_of_their_flow(own, tmp_path: Path) -> None:
    assert chosen(tmp_path, own.name) == [own.entrypoint]


def test_others_go_by_their_function_with_dashes(tmp_path: Path) -> None:
    assert chosen(tmp_path, "source-metrics/default") == ["deployments/source_metrics.py:source_metrics"]
    assert chosen(tmp_path, "records-nightly/ingest", "orchestrate/default") == [
        "orchestrator.flows.parent.orchestrate_flow",
        "deployments/records/flows.py:records_nightly",
    ]


def test_a_name_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="has no deployment source-metrics/nightly"):
        chosen(tmp_path, "source-metrics/nightly", "orchestrate/default")
