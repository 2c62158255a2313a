"""The embedded stack: a Prefect server, a work pool and a worker of one's own, for trying, demos and tests.

Law of this folder: it starts processes and talks HTTP to what it started; it never touches a server, a profile or a
`PREFECT_HOME` of the user, and what it started is gone when it is left, however it is left.
"""

from orchestrator.stack.api import StackError
from orchestrator.stack.containers import DockerPool
from orchestrator.stack.stack import Stack

__all__ = ["DockerPool", "Stack", "StackError"]
