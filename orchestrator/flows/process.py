"""What a user gives to `batch_flow`, read: its signature, what kind of work it is, and where it was written."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from prefect import Flow, Task
from prefect.utilities.hashing import file_hash

from orchestrator.batchrun.context import ItemContext
from orchestrator.batchrun.options import Per
from orchestrator.batchrun.work import Work
from orchestrator.errors import ConfigurationError

_OURS = ("batch", "items")
_PREFECTS = ("return_state", "wait_for")


@dataclass(frozen=True, slots=True)
class Process:
    """A user's function (or task, or flow) of one item.

    Args:
        given: What `batch_flow` was given.
        function: The plain function under it.
        is_async: Items run in the flow's loop. A task runs in its task runner whether it is async or not.
        wants_context: It has a second parameter annotated `ItemContext`.
        parameters: Its keyword-only parameters, annotations resolved: the job's parameters.
    """

    given: Callable[..., Any]
    function: Callable[..., Any]
    is_async: bool
    wants_context: bool
    parameters: tuple[inspect.Parameter, ...]

    @classmethod
    def read(cls, given: Any, per: Per) -> Process:
        """Read what a user gave.

        Raises:
            ConfigurationError: it is not callable, or its signature cannot take items; the text says what would.
        """
        function = given.fn if isinstance(given, Task | Flow) else given
        if not callable(function):
            raise ConfigurationError(
                f"must be a function, a task or a flow, not {type(given).__name__}", field="process"
            )
        name = getattr(function, "__name__", type(function).__name__)
        positional, keywords = _parameters(function, name)
        if not positional:
            raise ConfigurationError(f"{name}() must take the item as its first parameter", field="process")
        wants_context = len(positional) > 1
        if wants_context and not _is_context(positional[1].annotation):
            raise ConfigurationError(
                f"the second parameter of {name}() is {positional[1].name!r}: annotate it `ItemContext` to learn "
                "of the item, or put a `*` before it to make it a parameter of the job",
                field="process",
            )
        for parameter in positional[2:]:
            if parameter.default is inspect.Parameter.empty:
                raise ConfigurationError(
                    f"put a `*` before {parameter.name!r} in {name}(): what follows the item is given by keyword",
                    field="process",
                )
        for parameter in keywords:
            if parameter.name in (*_OURS, *_PREFECTS):
                raise ConfigurationError(
                    f"{name}() cannot have a parameter {parameter.name!r}: batch flows have one of their own",
                    field="process",
                )
        unwrapped = function.func if isinstance(function, partial) else function
        is_async = inspect.iscoroutinefunction(unwrapped) and not isinstance(given, Task)
        return cls(given, function, is_async, wants_context, tuple(keywords))

    def work(self, parameters: Mapping[str, Any], job: str, batch: int, attempt: int) -> Work:
        """It, bound to one run."""
        call = self.given.submit if isinstance(self.given, Task) else self.given
        return Work(call, self.is_async, self.wants_context, dict(parameters), job, batch, attempt)

    @property
    def runs_in_processes(self) -> bool:
        """It is a plain function, which can be sent to another process."""
        return not isinstance(self.given, Task | Flow)


@dataclass(frozen=True, slots=True)
class Written:
    """Where a batch flow was made: what Prefect must be told so that others can load it from there.

    Prefect names a flow by its function; ours is made in a factory, which nobody could load again.
    Source: prefect flows.py `Flow.__init__` and deployments/runner.py `from_flow`, 3.8.8.

    Args:
        module, file: Of the caller; file None in an interactive session.
        qualname: The name that the flow will have in that module.
        version: Hash of that file; None without one.
    """

    module: str
    file: str | None
    qualname: str
    version: str | None

    @property
    def entrypoint(self) -> str:
        by_file = self.module == "__main__" or self.module.startswith("__prefect_loader_")
        return f"{self.file if by_file and self.file else self.module}:{self.qualname}"

    @classmethod
    def at(cls, frame: FrameType, process: Process, *, decorated: bool) -> Written:
        """Where `batch_flow` was called: as a decorator the function's name becomes the flow's, else the variable's."""
        file = frame.f_globals.get("__file__")
        own = getattr(process.function, "__qualname__", None) or "batch_flow"
        name = own if decorated else _assigned_name(file, frame) or own
        version = file_hash(file) if file and Path(file).is_file() else None
        return cls(str(frame.f_globals.get("__name__", "__main__")), file, name, version)


def _parameters(function: Callable[..., Any], name: str) -> tuple[list[inspect.Parameter], list[inspect.Parameter]]:
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # an annotation that names what is imported for type checkers only
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the parameters of {name}() cannot be read: {error}", field="process") from error
    kinds = inspect.Parameter
    positional, keywords = [], []
    for parameter in signature.parameters.values():
        if parameter.kind is kinds.VAR_KEYWORD:
            raise ConfigurationError(
                f"{name}() takes **{parameter.name}: name its keyword parameters, so that unknown ones are refused",
                field="process",
            )
        if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD):
            positional.append(parameter)
        elif parameter.kind is kinds.KEYWORD_ONLY:
            keywords.append(parameter)
    return positional, keywords


def _is_context(annotation: Any) -> bool:
    if isinstance(annotation, str):  # not resolved: the name has to do
        return "ItemContext" in annotation
    return annotation is ItemContext or ItemContext in getattr(annotation, "__args__", ())


def _assigned_name(file: str | None, frame: FrameType) -> str | None:
    """The variable of `variable = batch_flow(...)` around the frame's line, at module level; None without one."""
    if file is None or frame.f_code.co_name != "<module>":
        return None
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    line = frame.f_lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.lineno <= line <= (node.end_lineno or node.lineno):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if isinstance(targets[0], ast.Name):
                return targets[0].id
    return None
