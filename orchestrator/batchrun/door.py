"""What a child run asks of the Prefect run it is: a Protocol, and a form of it for code that is not a Prefect run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, Protocol

Logger = logging.Logger | logging.LoggerAdapter[Any]


class Door(Protocol):
    """The child run's door. Implemented by `orchestrator.engine.child.RunDoor`, and by `NoDoor`.

    Args:
        logger: The run's logger, usable from any thread.
        run_name: Name of the flow run, for people.
        owns_process: This process exists for this run alone, and may be ended with it.
    """

    logger: Logger
    run_name: str
    owns_process: bool

    def masking(self, names: Sequence[str]) -> None:
        """Mask the values of those environment variables too, from now on."""
        ...

    def mask(self, text: str) -> str:
        """The text without secrets."""
        ...

    def publish(self, percent: float, metadata: Mapping[str, str]) -> None:
        """Create or replace the run's progress on its page; any error may escape. From one thread only."""
        ...

    def close_news(self) -> None:
        """Nothing more is published."""
        ...

    def check_limits(self, names: Sequence[str], rates: Sequence[str]) -> None:
        """Raises `ConfigurationError` when a limit does not exist (or, for `rates`, lets no rate through)."""
        ...

    def hold(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Hold one slot of each of those limits. Waits for them; losing them later raises nothing."""
        ...

    def ahold(self, names: Sequence[str]) -> AbstractAsyncContextManager[None]: ...

    def stop_waiting(self) -> None:
        """Nothing starts any more: whoever waits in `hold` gets an exception."""
        ...

    def close_limits(self) -> None:
        """The run is over: give back what slots it still has."""
        ...

    def take(self, names: Sequence[str]) -> None:
        """Wait until each of those rate limits lets one more start through."""
        ...

    async def atake(self, names: Sequence[str]) -> None: ...

    def resolve(self, value: Any) -> Any:
        """The value with each future in it (at the top, in a mapping, list or tuple) replaced by its result.

        Waits for all of them; raises what the first failed one raised.
        """
        ...

    def holds_futures(self, value: Any) -> bool:
        """`resolve` has something to do with it."""
        ...

    def tagged(self, tags: Sequence[str]) -> AbstractContextManager[None]:
        """Task runs made inside carry those tags, so that limits on them hold."""
        ...

    def context_for_processes(self) -> bytes | None:
        """What another process of ours needs to work in this run's context; None when there is none."""
        ...

    def is_cancelling(self) -> bool:
        """Somebody asked Prefect to cancel this run (False when that cannot be read)."""
        ...

    def end_process(self, state_type: str, name: str | None, message: str) -> None:
        """Last resort: propose that final state, send what logs are left, and end this process at once, exit code 0."""
        ...

    def end_process_after(self, seconds: float) -> None:
        """End this process so many seconds from now, unless it has ended by itself by then."""
        ...


class NoDoor:
    """No Prefect run around: for tests and plain calls. Keeps what was published."""

    def __init__(self) -> None:
        self.logger: Logger = logging.getLogger("orchestrator.batchrun")
        self.run_name = "direct"
        self.owns_process = False
        self.published: list[tuple[float, Mapping[str, str]]] = []

    def masking(self, names: Sequence[str]) -> None: ...

    def mask(self, text: str) -> str:
        return text

    def publish(self, percent: float, metadata: Mapping[str, str]) -> None:
        self.published.append((percent, metadata))

    def close_news(self) -> None: ...

    def check_limits(self, names: Sequence[str], rates: Sequence[str]) -> None: ...

    @contextmanager
    def hold(self, names: Sequence[str]) -> Iterator[None]:
        yield

    @asynccontextmanager
    async def ahold(self, names: Sequence[str]) -> Any:
        yield

    def stop_waiting(self) -> None: ...

    def close_limits(self) -> None: ...

    def take(self, names: Sequence[str]) -> None: ...

    async def atake(self, names: Sequence[str]) -> None: ...

    def resolve(self, value: Any) -> Any:
        return value

    def holds_futures(self, value: Any) -> bool:
        return False

    @contextmanager
    def tagged(self, tags: Sequence[str]) -> Iterator[None]:
        yield

    def context_for_processes(self) -> bytes | None:
        return None

    def is_cancelling(self) -> bool:
        return False

    def end_process(self, state_type: str, name: str | None, message: str) -> None: ...

    def end_process_after(self, seconds: float) -> None: ...
