"""The batch flow behind the tests of the UI; deployed from a project folder of its own."""

from __future__ import annotations

import time
from typing import Any

from orchestrator import batch_flow

ERRORS = {"ValueError": ValueError, "TypeError": TypeError, "RuntimeError": RuntimeError}


@batch_flow
def careful(item: Any, *, seconds: float = 0.0) -> Any:
    """Takes its time over an item, and fails those that say so.

    Args:
        seconds: Time for each item.
    """
    time.sleep(seconds)
    if isinstance(item, dict) and "fail" in item:
        raise ERRORS[item.get("with", "ValueError")](item["fail"])
    return item
