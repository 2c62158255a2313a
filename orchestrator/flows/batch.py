"""`batch_flow`: a function of one item becomes a Prefect flow of a batch of items."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, overload

from prefect import Flow, flow
from prefect.client.schemas.objects import State, StateType
from pydantic import Field

from orchestrator.batchrun.conduct import Chosen
from orchestrator.batchrun.ending import Ending, ItemsFailedError
from orchestrator.batchrun.options import Executor, Options, Per, RetryIf, fail_rule
from orchestrator.batchrun.run import arun_batch, arun_items, run_batch, run_items
from orchestrator.core.killswitch import Switch
from orchestrator.core.model import BatchReference
from orchestrator.engine.child import RunDoor
from orchestrator.engine.limits import told
from orchestrator.errors import ConfigurationError
from orchestrator.flows.process import Process, Written
from orchestrator.settings import Settings

_DOCUMENTED = {
    "batch": "Which items of which job: given by the parent run, leave it empty in the form.",
    "items": "Items to run right here, without a parent run: a list of JSON values.",
}


@overload
def batch_flow(process: Callable[..., Any], /, *, name: str | None = None, item_concurrency: int = 1,
               item_retries: int = 0, item_retry_delay_seconds: float = 0, item_retry_if: RetryIf | None = None,
               item_timeout_seconds: float | None = None,
               concurrency_limits: Sequence[str] = (), rate_limits: Sequence[str] = (),
               executor: Executor = "threads", per: Per = "item", fail_run_when: str | Switch | None = None,
               **flow_kwargs: Any) -> Flow[..., Any]: ...  # fmt: skip


@overload
def batch_flow(*, name: str | None = None, item_concurrency: int = 1,
               item_retries: int = 0, item_retry_delay_seconds: float = 0, item_retry_if: RetryIf | None = None,
               item_timeout_seconds: float | None = None,
               concurrency_limits: Sequence[str] = (), rate_limits: Sequence[str] = (),
               executor: Executor = "threads", per: Per = "item", fail_run_when: str | Switch | None = None,
               **flow_kwargs: Any) -> Callable[[Callable[..., Any]], Flow[..., Any]]: ...  # fmt: skip


def batch_flow(
    process: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    item_concurrency: int = 1,
    item_retries: int = 0,
    item_retry_delay_seconds: float = 0,
    item_retry_if: RetryIf | None = None,
    item_timeout_seconds: float | None = None,
    concurrency_limits: Sequence[str] = (),
    rate_limits: Sequence[str] = (),
    executor: Executor = "threads",
    per: Per = "item",
    fail_run_when: str | Switch | None = None,
    **flow_kwargs: Any,
) -> Flow[..., Any] | Callable[[Callable[..., Any]], Flow[..., Any]]:
    """Make a function of one item into a flow that runs a batch of items and accounts for each of them.

    Deploy that flow as any other (`prefect deploy`, `.deploy()`, `.serve()`) and fan out over the deployment. It runs
    by itself too: give it `items`. Use it as a function (`ingest = batch_flow(process)`) or as a decorator.

    Args:
        process: A function whose first parameter is the item (any JSON value): sync, async, a Prefect task (a task run
            per item), a flow (a flow run per item), or a function that submits tasks and returns a future or a mapping
            or list of futures. A second parameter annotated `ItemContext` learns of the item. Keyword-only parameters
            become parameters of the flow. What it returns must be JSON; an exception fails that item alone.
        name: The flow's name; by default the function's, with dashes.
        item_concurrency: Items in progress at once in one run; one ends, the next starts.
        item_retries: Further tries of an item that failed.
        item_retry_delay_seconds: Seconds between two tries.
        item_retry_if: Whether another try may help, asked with the exception of the last one; by default always. For
            example `lambda error: not isinstance(error, ValueError)`.
        item_timeout_seconds: Seconds that one try may take before its item fails with `ItemTimeoutError`. A sync
            function in a thread cannot be interrupted: it is left behind, not tried again, and once `item_concurrency`
            hang, the run ends for a new attempt. With `executor="processes"` its process is ended.
        concurrency_limits: Prefect concurrency limits of which each item holds one slot from start to end, in all runs
            together. They must exist (`prefect gcl create NAME --limit N`).
        rate_limits: Prefect limits with a slot decay; each try of an item waits for one.
        executor: `threads`, or `processes` for CPU-bound plain functions: each item in one of `item_concurrency`
            other processes, which import the function's module for themselves.
        per: `item`; or `batch` for a vectorised function: it gets the list of all items at once and returns a list with
            one outcome per item, in their order; an exception in it fails its item.
        fail_run_when: What makes a run Failed that went through all its items: an expression over its numbers, such as
            `"failed > 0"` or `"failed_rate > 0.1"` (the kill switch's language); by default when no item succeeded.
        flow_kwargs: For Prefect's `@flow`: `task_runner`, `log_prints`, hooks, `description`, ... `retries` stays 0:
            items are retried one by one, lost runs by the job.

    Returns:
        A flow with the parameters `batch`, `items` and the keyword-only ones of `process`. Called with `items`, it
        returns one mapping per item: `index`, `outcome`, and `result` or `error`.

    Raises:
        ConfigurationError: an option or the function's signature does not fit; said where the flow is made.
    """
    caller = sys._getframe(1)
    options = Options(
        item_concurrency, item_retries, item_retry_delay_seconds, item_timeout_seconds,
        concurrency_limits if isinstance(concurrency_limits, str) else tuple(concurrency_limits),  # type: ignore[arg-type]
        rate_limits if isinstance(rate_limits, str) else tuple(rate_limits),  # type: ignore[arg-type]
        executor, per, fail_rule(fail_run_when), item_retry_if,
    )  # fmt: skip
    if flow_kwargs.get("retries"):
        raise ConfigurationError(
            "must stay 0: use item_retries; runs that are lost are started again by the job", field="retries"
        )
    if process is None:

        def decorate(function: Callable[..., Any]) -> Flow[..., Any]:
            read = Process.read(function, per)
            return _make(read, options, Written.at(caller, read, decorated=True), name, flow_kwargs)

        return decorate
    read = Process.read(process, per)
    return _make(read, options, Written.at(caller, read, decorated=False), name, flow_kwargs)


def _make(
    process: Process, options: Options, written: Written, name: str | None, flow_kwargs: dict[str, Any]
) -> Flow[..., Any]:
    if options.executor == "processes" and not process.runs_in_processes:
        raise ConfigurationError("processes run plain functions; give a task a task runner instead", field="executor")
    body = (
        _async_body(process, options) if process.is_async and options.executor == "threads" else _body(process, options)
    )
    own_name = getattr(process.function, "__name__", "batch-flow")
    body.__module__, body.__qualname__ = written.module, written.qualname
    body.__name__ = written.qualname.rpartition(".")[2]
    body.__doc__ = _docstring(process)
    body.__signature__ = _signature(process, told(options.concurrency_limits, options.rate_limits))  # type: ignore[attr-defined]
    settings: dict[str, Any] = {
        "version": written.version,
        "description": inspect.getdoc(process.function),
        **flow_kwargs,
        "retries": 0,
    }
    made: Flow[..., Any] = flow(name=name or own_name.replace("_", "-").replace("<lambda>", "batch-flow"), **settings)(
        body
    )
    made._entrypoint = written.entrypoint
    return made


def _body(process: Process, options: Options) -> Callable[..., Any]:
    def body(*, batch: BatchReference | None = None, items: list[Any] | None = None, **parameters: Any) -> State[Any]:
        reference, values, chosen, door = _asked(process, options, batch, items, parameters)
        if reference is not None:
            return _state(run_batch(reference, chosen, door))
        return _state(run_items(values, chosen, door, result_max_bytes=Settings().result_max_bytes))

    return body


def _async_body(process: Process, options: Options) -> Callable[..., Any]:
    async def body(
        *, batch: BatchReference | None = None, items: list[Any] | None = None, **parameters: Any
    ) -> State[Any]:
        reference, values, chosen, door = _asked(process, options, batch, items, parameters)
        if reference is not None:
            return _state(await arun_batch(reference, chosen, door))
        return _state(await arun_items(values, chosen, door, result_max_bytes=Settings().result_max_bytes))

    return body


def _asked(process: Process, options: Options, batch: Any, items: list[Any] | None, parameters: Mapping[str, Any]
           ) -> tuple[BatchReference | None, list[Any], Chosen, RunDoor]:  # fmt: skip
    if batch is not None and items is not None:
        raise ConfigurationError("give either `items` or `batch`, not both", field="items")
    if batch is None and items is None:
        raise ConfigurationError("give a list of items to run, or start this flow as part of a job", field="items")
    # Prefect has made it a reference already, unless the flow skips validation.
    reference = BatchReference(**batch) if isinstance(batch, Mapping) else batch

    def work(job: str, number: int, attempt: int) -> Any:
        return process.work(parameters, job, number, attempt)

    return reference, items or [], Chosen(work, options), RunDoor(Settings().masked_env)


def _state(ending: Ending) -> State[Any]:
    data: Any = ending.outcomes
    if data is not None and ending.type != "COMPLETED":
        data = ItemsFailedError(ending.message, data)  # Prefect raises a failed state's data to whoever called the flow
    return State(type=StateType(ending.type), name=ending.name, message=ending.message, data=data)


def _signature(process: Process, told_of_batch: dict[str, Any]) -> inspect.Signature:
    def parameter(name: str, annotation: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    reference: Any = BatchReference | None
    if told_of_batch:
        reference = Annotated[reference, Field(json_schema_extra=told_of_batch)]
    ours = [parameter("batch", reference), parameter("items", list[Any] | None)]
    return inspect.Signature([*ours, *process.parameters])


def _docstring(process: Process) -> str:
    """The function's docstring with ours for `batch` and `items`: Prefect's form shows what stands under `Args:`."""
    from prefect.utilities.callables import parameter_docstrings

    own = inspect.getdoc(process.function) or ""
    said = parameter_docstrings(own)
    documented = {**_DOCUMENTED, **{p.name: said[p.name] for p in process.parameters if p.name in said}}
    first = (
        own.split("\n\nArgs:")[0] if own else f"Runs {getattr(process.function, '__name__', 'a function')} on items."
    )
    lines = [f"    {name}: {' '.join(text.split())}" for name, text in documented.items()]
    return "\n".join([first, "", "Args:", *lines])
