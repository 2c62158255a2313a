"""Batch flows that say what they should not."""

from __future__ import annotations

import os
from typing import Any

from orchestrator import batch_flow


@batch_flow(name="sec-tells")
def tells(item: dict[str, Any]) -> Any:
    """Each item fails with a secret in its text, in one of its forms; or returns one."""
    secret = os.environ[item["name"]]
    if item.get("returns"):
        return secret
    raise ValueError(f"cannot log in: {item['before']}{item['form'].replace('SECRET', secret)}")


@batch_flow(name="sec-sleeps")
def sleeps(item: float) -> float:
    """Takes its time."""
    import time

    time.sleep(item)
    return item
