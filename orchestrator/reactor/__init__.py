"""The law here: carry out what the machine commands, and tell it what happened. The parent's only loop.

`loop` plays events and commands; `perform` does the single commands; `watch` gets news of children (listening is a
hint, reading the record is the truth); `recording` keeps what was played; `heart` gives the parent's sign of life from
a thread of its own; `view` and `page` are what people see. Nothing is decided here: whatever can be decided is the
machine's.
"""

from orchestrator.reactor.job import Job, Times
from orchestrator.reactor.loop import Reactor
from orchestrator.reactor.recording import Recorder
from orchestrator.reactor.thread import JobThread
from orchestrator.reactor.view import JobView

__all__ = ["Job", "JobThread", "JobView", "Reactor", "Recorder", "Times"]
