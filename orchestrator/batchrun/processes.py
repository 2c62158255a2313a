"""Items in processes of their own (`executor="processes"`): CPU-bound work side by side, and a hang that can be ended.

Each thread of the window owns one process and waits for it, so an item beyond its timeout costs its process alone.
`concurrent.futures.ProcessPoolExecutor` cannot do that: ending one of its processes breaks the whole pool. What comes
back is JSON text, never a pickle: a result that a ledger cannot hold is refused where it was made.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import multiprocessing
import signal
import sys
import traceback
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from orchestrator.batchrun.recorder import ADVICE, ResultError
from orchestrator.batchrun.work import Work
from orchestrator.core.model import Item
from orchestrator.errors import ItemTimeoutError
from orchestrator.store.jsonl import NotJsonError, encode_json

_STOP_SECONDS = 1.0


class RemoteError(Exception):
    """Stands for an exception of another process; `__name__` is that exception's."""


class ProcessCall:
    """Calls `work` in a process that it starts when first needed and again after it was lost.

    Args:
        work: Pickled by value with what it refers to in the module it was loaded from.
        context: From `Door.context_for_processes`.
        timeout_seconds: Of one call; the process is killed beyond it.
    """

    def __init__(self, work: bytes, context: bytes | None, timeout_seconds: float | None) -> None:
        self._payload = (work, context, list(sys.path))
        self._timeout = timeout_seconds
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._killed = False

    def __call__(self, item: Item) -> Any:
        """The result of one item.

        Raises:
            ItemTimeoutError: it took too long, and its process was ended.
            RemoteError: what the function raised, under the same name; `ProcessDied` when it killed its process.
        """
        pipe = self._started()
        try:
            pipe.send_bytes(json.dumps([item.index, item.key, item.value]).encode())
            # Waits in short steps without a timeout of its own when none is set: a closed pipe wakes it at once.
            if not pipe.poll(self._timeout):
                self._end()
                raise ItemTimeoutError(f"took longer than {self._timeout:g} s, and its process was ended")
            kind, *said = json.loads(pipe.recv_bytes())
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            code = self._end()
            raise _named("ProcessDied", f"the item's process ended ({_died(code)})") from error
        if kind == "result":
            return json.loads(said[0])
        name, text, trace = said
        raised = _named(name, text)
        raised.add_note(trace)
        raise raised

    def kill(self) -> None:
        """End the process now, from any thread; it is not started again."""
        self._killed = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Let the process end by itself, or end it."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.join(_STOP_SECONDS)
            self._end()

    def _started(self) -> Connection:
        if self._pipe is not None:
            return self._pipe
        if self._killed:
            raise _named("ProcessDied", "the run is over")
        spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of this process's threads
        here, there = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(there, *self._payload), daemon=False, name="batch-item")
        process.start()
        there.close()
        self._process, self._pipe = process, here
        return here

    def _end(self) -> int | None:
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if pipe is not None:
            pipe.close()
        if process is None:
            return None
        process.join(0.2)
        if process.is_alive():
            process.kill()
        process.join()
        return process.exitcode


def pickled(work: Work) -> bytes:
    """The work for another process.

    Functions of a file that Prefect loaded by its path are pickled by value: no other process can import that module
    by name. Source: prefect utilities/importtools.py `load_script_as_module`, 3.8.8.
    """
    module = inspect.getmodule(work.function)
    by_value = module is not None and module.__name__.startswith("__prefect_loader_")
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(work))
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)


def _serve(pipe: Connection, payload: bytes, context: bytes | None, path: list[str]) -> None:
    """The other process: one item after the other until the pipe closes."""
    # The run decides when its processes end; the terminal's Ctrl-C and a group's SIGTERM are the run's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = path
    work: Work = cloudpickle.loads(payload)
    with ExitStack() as stack:
        if context is not None:
            from orchestrator.engine.child import entered

            stack.enter_context(entered(context))
        while True:
            try:
                index, key, value = json.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                return
            try:
                pipe.send_bytes(json.dumps(_answer(work, Item(index, key, value))).encode())
            except OSError:
                return


def _answer(work: Work, item: Item) -> list[str]:
    try:
        result = work(item)
        if work.is_async:
            result = asyncio.run(result)
        return ["result", _as_json(result)]
    except BaseException as error:  # noqa: BLE001 - whatever the user's code raises fails its item
        text = f"the function called sys.exit({error.code!r})" if isinstance(error, SystemExit) else str(error)
        return ["error", type(error).__name__, text, "".join(traceback.format_exception(error))]


def _as_json(result: Any) -> str:
    try:
        return encode_json(result).decode()
    except NotJsonError as error:
        raise ResultError(f"the result cannot be kept, {error}; {ADVICE}") from error


def _named(name: str, text: str) -> RemoteError:
    """An exception whose type has that name: counts and kill switches go by the name."""
    kind: type[RemoteError] = type(name if name.isidentifier() else "RemoteError", (RemoteError,), {})
    return kind(text)


def _died(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"
