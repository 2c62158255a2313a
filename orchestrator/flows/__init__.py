"""The front door in Python: `batch_flow` makes the flow that works on batches of items.

Composition roots: here our parts meet Prefect's decorators.
"""

from orchestrator.batchrun.context import ItemContext
from orchestrator.batchrun.ending import ItemsFailedError
from orchestrator.engine.blocks import place_of
from orchestrator.flows.batch import batch_flow
from orchestrator.store import register_scheme

register_scheme("block", place_of)

__all__ = ["ItemContext", "ItemsFailedError", "batch_flow"]
