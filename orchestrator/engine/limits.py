"""The Prefect limits that a batch flow's items need: told by its deployment, checked by its parent and by each child.

A flow says them in the schema of its parameter `batch`, which travels with the deployment: so a limit that does not
exist is found before anything is created.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

SCHEMA_KEY = "x-orchestrator-limits"


def told(concurrency_limits: Sequence[str], rate_limits: Sequence[str]) -> dict[str, Any]:
    """What the schema of `batch` says of them; {} when there are none."""
    needed = {"concurrency_limits": list(concurrency_limits), "rate_limits": list(rate_limits)}
    return {SCHEMA_KEY: needed} if any(needed.values()) else {}


def needed(schema: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The `(option of batch_flow, name of the limit)` that a deployment's parameter schema tells of."""
    said = ((schema.get("properties") or {}).get("batch") or {}).get(SCHEMA_KEY)
    if not isinstance(said, Mapping):
        return []
    return [
        (field, name)
        for field in ("concurrency_limits", "rate_limits")
        for name in said.get(field) or ()
        if isinstance(name, str)
    ]


def trouble(field: str, name: str, limit: GlobalConcurrencyLimitResponse | None) -> str | None:
    """Why items cannot hold that limit, with the remedy; None when they can."""
    if limit is None:
        decay = " --slot-decay-per-second RATE" if field == "rate_limits" else ""
        return f"there is no limit {name!r}; create it with: prefect gcl create {name} --limit N{decay}"
    if not limit.active:
        return f"the limit {name!r} is not active; prefect gcl enable {name}"
    if field == "rate_limits" and not limit.slot_decay_per_second:
        return f"the limit {name!r} lets no rate through; prefect gcl update {name} --slot-decay-per-second RATE"
    return None
