"""How a batch flow runs its items: what its author chose, and what the job says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.core.killswitch import Switch, parse
from orchestrator.errors import ConfigurationError

Executor = Literal["threads", "processes"]
Per = Literal["item", "batch"]
RetryIf = Callable[[Exception], bool]

_LEAST_NEWS_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """The author's choices; see `batch_flow` for what each means.

    Raises:
        ConfigurationError: a number is out of range, or choices exclude each other.
    """

    item_concurrency: int = 1
    item_retries: int = 0
    item_retry_delay_seconds: float = 0.0
    item_timeout_seconds: float | None = None
    concurrency_limits: tuple[str, ...] = ()
    rate_limits: tuple[str, ...] = ()
    executor: Executor = "threads"
    per: Per = "item"
    fail_run_when: Switch | None = None
    item_retry_if: RetryIf | None = None

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, message: str) -> None:
            if not holds:
                raise ConfigurationError(message, field=field)

        whole = isinstance(self.item_concurrency, int) and not isinstance(self.item_concurrency, bool)
        require(whole and 1 <= self.item_concurrency <= 10_000, "item_concurrency", "must be 1 to 10,000 items")
        require(isinstance(self.item_retries, int) and self.item_retries >= 0, "item_retries", "must be 0 or more")
        require(self.item_retry_delay_seconds >= 0, "item_retry_delay_seconds", "must be 0 or more seconds")
        require(
            self.item_timeout_seconds is None or self.item_timeout_seconds > 0,
            "item_timeout_seconds",
            "must be more than 0 seconds, or None for no timeout",
        )
        require(
            self.item_retry_if is None or callable(self.item_retry_if),
            "item_retry_if",
            "must be a function of the exception that says whether another try may help",
        )
        require(
            self.item_retry_if is None or self.executor != "processes",
            "item_retry_if",
            'has no meaning with executor="processes": exceptions stay in the process that raised them',
        )
        require(self.executor in ("threads", "processes"), "executor", "must be 'threads' or 'processes'")
        require(self.per in ("item", "batch"), "per", "must be 'item' or 'batch'")
        for field, names in (("concurrency_limits", self.concurrency_limits), ("rate_limits", self.rate_limits)):
            # A single string is a sequence of letters: a mistake that would ask for limits named "a", "p", "i".
            require(not isinstance(names, str) and all(isinstance(n, str) and n for n in names), field,
                    "must be a list of names of Prefect concurrency limits")  # fmt: skip
        if self.per == "batch":
            given = [
                name
                for name, chosen in (
                    ("item_concurrency", self.item_concurrency != 1),
                    ("item_retries", self.item_retries),
                    ("item_retry_if", self.item_retry_if is not None),
                    ("item_timeout_seconds", self.item_timeout_seconds is not None),
                    ("rate_limits", self.rate_limits),
                    ("executor", self.executor != "threads"),
                )
                if chosen
            ]
            require(
                not given, given[0] if given else "per", 'has no meaning with per="batch": the function gets all items'
            )

    def tries_again(self, error: BaseException, tries: int, say: Callable[[str], None]) -> bool:
        """Whether an item that failed so often, at last with this error, is tried once more.

        Args:
            say: Takes a line when the author's own rule raised; the item then fails with what it failed with.
        """
        if tries > self.item_retries:
            return False
        if self.item_retry_if is None or not isinstance(error, Exception):
            return True
        try:
            return bool(self.item_retry_if(error))
        except Exception as wrong:  # noqa: BLE001 - the author's own code: no reason to lose what the item failed with
            say(f"item_retry_if raised {type(wrong).__name__}: the item is not tried again")
            return False


def fail_rule(text: str | Switch | None) -> Switch | None:
    """`fail_run_when` as a switch; None for the default (no item succeeded).

    Raises:
        ExpressionError: it does not parse.
    """
    return parse(text, field="fail_run_when") if isinstance(text, str) else text


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What the parent wrote into the job's record for its children (`spec["child"]`), so that both sides agree.

    Args:
        fence_seconds: Between two looks at the job folder.
        item_grace_seconds: That running items get to finish after a stop.
        lease_seconds: Without a sign of life of the parent before it is given up; None when nobody gives any.
        alive_seconds: Between two signs of life of this run; 0: none.
        isolate_crashing_items: Run items one by one once two runs of the batch have died.
        result_max_bytes: Largest result of one item, as JSON bytes.
        masked_env: Names of environment variables whose values never appear in what is written.
        news_seconds: Least seconds between two pieces of news.
        news_after_seconds: Age of the run before the first one: short runs tell nothing but their end.
    """

    fence_seconds: float = 2.0
    item_grace_seconds: float = 10.0
    lease_seconds: float | None = 60.0
    alive_seconds: float = 0.0
    isolate_crashing_items: bool = True
    result_max_bytes: int = 65_536
    masked_env: tuple[str, ...] = ()
    news_seconds: float = _LEAST_NEWS_SECONDS
    news_after_seconds: float = 5.0

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> JobSettings:
        """From a job's spec; what is absent keeps its default, what is unknown is for newer children."""
        data = dict(spec.get("child") or {})
        known = {name: data[name] for name in cls.__dataclass_fields__ if data.get(name) is not None}
        if "masked_env" in known:
            known["masked_env"] = tuple(known["masked_env"])
        if "news_seconds" in known:
            known["news_seconds"] = max(_LEAST_NEWS_SECONDS, known["news_seconds"])  # Prefect's API bears no more
        return cls(**known)
