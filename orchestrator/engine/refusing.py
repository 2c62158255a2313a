"""A flow that refuses parameters it does not have by itself, with one line instead of a traceback.

Prefect compares a run's parameters with the function's signature before anything of the flow runs, and what it then
raises ends the run as Crashed, with two tracebacks in its log and the line that matters in none of its states. The
server does not help: it takes parameters that the schema does not know. Source: prefect flow_engine.py
`_flow_parameters`, utilities/callables `parameters_to_args_kwargs`, server/api/deployments.py, 3.8.8.

The way in is the function that Prefect asks the flow for: in a process that was started for a run whose parameters do
not fit, it is given one that takes just these, and refuses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

from prefect import Flow, State
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from orchestrator.engine.context import in_flow_run_process

Refusal = Callable[[Sequence[str], Sequence[str]], State[Any]]
"""Given the names that do not fit and the names that are missing: the final state."""


class RefusingFlow(Flow[..., Any]):
    """As `Flow`, for async functions; give it to a decorator by `refusing_flow`."""

    def __init__(self, function: Callable[..., Any], refusal: Refusal, **options: Any) -> None:
        self._refusal = refusal
        self._refused: Callable[..., Any] | None = None
        self._compared_with = in_flow_run_process()  # while it is made, its own signature is what counts
        super().__init__(function, **options)
        self._compared_with = None

    @property
    def fn(self) -> Callable[..., Any]:  # an attribute there
        run_id = in_flow_run_process()
        if run_id != self._compared_with and FlowRunContext.get() is None:
            self._compared_with = run_id
            self._refused = None if run_id is None else self._refusing(run_id)
        return self._refused or self._function

    @fn.setter
    def fn(self, function: Callable[..., Any]) -> None:
        self._function = function

    def _refusing(self, run_id: str) -> Callable[..., Any] | None:
        """The function to run instead when that run is one of ours and its parameters do not fit, else None."""
        try:
            with get_client(sync_client=True) as client:
                run = client.read_flow_run(UUID(run_id))
                unknown, missing = self._misfits(run.parameters)
                if not (unknown or missing) or client.read_flow(run.flow_id).name != self.name:
                    return None
        except Exception:  # noqa: BLE001 - Prefect's engine meets the same trouble, and says so in its own way
            return None

        async def refuse(**given: Any) -> State[Any]:
            return self._refusal(unknown, missing)

        named = [_Given(name) for name in run.parameters]
        cast(Any, refuse).__signature__ = inspect.Signature(named)
        return refuse

    def _misfits(self, given: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        parameters = inspect.signature(self._function).parameters
        required = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty]
        return [n for n in given if n not in parameters], [n for n in required if n not in given]


def refusing_flow(refusal: Refusal, **options: Any) -> Callable[[Callable[..., Any]], RefusingFlow]:
    """As `@flow`, with a refusal for parameters that do not fit."""
    return lambda function: RefusingFlow(function, refusal, **options)


class _Given(inspect.Parameter):
    """A keyword of any name: what comes over the API need not be one that Python could write."""

    __slots__ = ("_given",)

    def __init__(self, name: str) -> None:
        super().__init__("given", inspect.Parameter.KEYWORD_ONLY)
        self._given = name

    @property
    def name(self) -> str:
        return self._given
