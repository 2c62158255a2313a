"""`batch_flow` as a maker of flows: what Prefect is told of them, and what it refuses to make."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any
from uuid import uuid4

import pytest
from prefect import Flow, flow, task
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from orchestrator.core.model import BatchReference
from orchestrator.errors import ConfigurationError, ExpressionError
from orchestrator.flows import ItemContext, batch_flow

PROJECT = '''
    """A project of somebody else."""
    from orchestrator.flows import ItemContext, batch_flow
    from prefect import flow, task


    @flow
    def ordinary(): ...


    @batch_flow
    def bare(item: str) -> str:
        return item


    @batch_flow(item_concurrency=8, name="Called")
    async def called(item: str, context: ItemContext, *, size: int = 3, mode: str):
        """Does things.

        Args:
            item: What is given.
            size: How many
                at once.
        """
        return item


    def clean(item):
        return item


    assigned = batch_flow(
        clean,
        item_concurrency=2,
    )


    @batch_flow
    @task
    def tasked(item: str):
        return item
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    # A name of its own: Prefect leaves what it loaded in sys.modules.
    path = tmp_path / f"project_{uuid4().hex}.py"
    path.write_text(dedent(PROJECT))
    return path


@pytest.mark.parametrize(
    ("variable", "flow_name"), [("bare", "bare"), ("called", "Called"), ("assigned", "clean"), ("tasked", "tasked")]
)
def test_a_flow_loads_from_the_place_where_it_was_made(project: Path, variable: str, flow_name: str) -> None:
    ordinary = load_flow_from_entrypoint(f"{project}:ordinary", use_placeholder_flow=False)
    made = load_flow_from_entrypoint(f"{project}:{variable}", use_placeholder_flow=False)
    assert (made.name, made.version) == (flow_name, ordinary.version)
    assert made.fn.__qualname__ == variable
    assert str(made._entrypoint).endswith(f":{variable}")
    # Prefect names modules that it loads by their file differently from load to load; ours follows.
    assert made.fn.__module__.startswith(("project_", "__prefect_loader_"))


def test_the_version_follows_the_users_file(project: Path) -> None:
    before = load_flow_from_entrypoint(f"{project}:bare").version
    project.write_text(project.read_text() + "\n# changed\n")
    assert load_flow_from_entrypoint(f"{project}:bare").version != before


def test_a_deployment_of_it_names_the_users_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.parent)
    monkeypatch.syspath_prepend(str(project.parent))
    module = importlib.import_module(project.stem)
    for variable in ("ordinary", "bare", "called", "assigned"):
        made = getattr(module, variable)
        assert made._entrypoint == f"{project.stem}:{variable}"
        assert made.to_deployment(name="x").entrypoint == f"{project.name}:{variable}"


def test_its_schema_shows_the_functions_own_parameters(project: Path) -> None:
    schema = parameter_schema(load_flow_from_entrypoint(f"{project}:called"))
    assert list(schema.properties) == ["batch", "items", "size", "mode"]
    assert schema.required == ["mode"]
    assert schema.properties["size"]["type"] == "integer"
    assert schema.properties["size"]["default"] == 3
    assert schema.properties["size"]["description"] == "How many at once."
    assert "leave it empty" in schema.properties["batch"]["description"]
    assert "BatchReference" in schema.definitions


def test_a_reference_as_json_becomes_a_reference() -> None:
    made = batch_flow(lambda item: item, name="x")
    reference = BatchReference("job", "/f", "n", 0, 1, 0, 0, 1, "p", 0, 3, "h")
    assert made.validate_parameters({"batch": reference.to_json()})["batch"] == reference


def test_an_unknown_or_wrongly_typed_parameter_is_refused() -> None:
    from prefect.exceptions import ParameterTypeError, SignatureMismatchError

    def process(item: Any, *, size: int = 1) -> None: ...

    made = batch_flow(process)
    with pytest.raises(SignatureMismatchError):
        made.validate_parameters({"items": [], "colour": "red"})
    with pytest.raises(ParameterTypeError):
        made.validate_parameters({"items": [], "size": "many"})


def test_flow_options_pass_through_and_retries_stay_zero() -> None:
    from prefect.task_runners import ThreadPoolTaskRunner

    made = batch_flow(lambda item: item, name="x", task_runner=ThreadPoolTaskRunner(max_workers=3), log_prints=True)
    assert isinstance(made, Flow)
    assert (made.task_runner._max_workers, made.log_prints, made.retries) == (3, True, 0)  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="retries: must stay 0"):
        batch_flow(lambda item: item, name="x", retries=2)


def no_item() -> None: ...
def second(item: Any, size: int) -> None: ...
def third(item: Any, context: ItemContext, size: int) -> None: ...
def anything(item: Any, **options: Any) -> None: ...
def taken(item: Any, *, items: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (no_item, "must take the item as its first parameter"),
        (second, "annotate it `ItemContext`"),
        (third, r"put a `\*` before 'size'"),
        (anything, "name its keyword parameters"),
        (taken, "cannot have a parameter 'items'"),
        ("process", "must be a function, a task or a flow, not str"),
    ],
)
def test_a_function_that_cannot_take_items_is_refused_with_the_remedy(function: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        batch_flow(function)


def test_a_rule_that_does_not_parse_is_refused_where_the_flow_is_made() -> None:
    with pytest.raises(ExpressionError, match="fail_run_when"):
        batch_flow(lambda item: item, name="x", fail_run_when="failed >")


def test_tasks_and_flows_are_not_sent_to_processes() -> None:
    for given in (task(no_item), flow(name="x")(second)):
        with pytest.raises(ConfigurationError):
            batch_flow(given, executor="processes")


def test_types_hold() -> None:
    """What `tests/typing` says of the types is checked by mypy, here as in `make lint`."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-m", "mypy", "tests/typing/batch_flow.py"], cwd=root, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout
