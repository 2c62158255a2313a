"""Named places between two steps of a parent's life: where a parent may die, and be resumed.

A parent can be killed between any two of its steps. Each place where that makes a difference has a name, and the code
says when it passes it. In production nobody listens, and `passed` does nothing at all; tests install `hook` in a parent
of their own and end it there (a real one by SIGKILL, a simulated one by whatever the hook raises).

| boundary | before it | after it |
|---|---|---|
| `STAGING_BEGUN` | the request was checked, the deployment found | items are staged |
| `ITEMS_STAGED` | all items and their index lie in the folder | `job.json` is written |
| `JOB_WRITTEN` | the job exists | this process becomes its parent |
| `EPOCH_CLAIMED` | this process is the parent | its sign of life |
| `LEASE_BEGUN` | the first sign of life | the door to Prefect is opened |
| `GATEWAY_OPEN` | the door is open | what an earlier parent left is looked for |
| `RESTORE_LISTED` | the folder's attempts were listed | Prefect is asked by key |
| `RESTORE_ASKED` | a page of keys was answered | what is over is read, and given up where it said no last word |
| `RESTORE_READ` | all of it was read | it is played |
| `RESTORE_PLAYED` | the machine is where the job was | stops and controls are read |
| `NOTICES_READ` | stops and controls were read | the page is begun |
| `PAGE_BEGUN` | the page stands | the event that the job began |
| `STARTED_EMITTED` | that event was sent | the first creation |
| `SUBMIT_READY` | a creation was decided | it is sent |
| `SUBMIT_ANSWERED` | Prefect answered: the child run exists | the answer is told to the machine |
| `SUBMIT_PLAYED` | the machine knows the child run | whatever comes next |
| `SUBMIT_LOST` | the answer to a creation was lost | the machine is told so |
| `RESOLVE_READY` | a creation of unknown outcome is to be looked up | it is asked for by key |
| `RESOLVE_ANSWERED` | Prefect answered that | the answer is told to the machine |
| `CHILDREN_READ` | the records of the children in flight were read | what they say is told to the machine |
| `END_READ` | a child run's end was read | its ledger is read |
| `ATTEMPT_CLOSED` | the ledger was read, the attempt given up where it said no last word | the machine is told so |
| `ATTEMPT_LOST` | the machine gave the attempt up and wants another | that is submitted |
| `BATCH_SETTLED` | a batch has its outcome | whatever comes next |
| `STOP_WRITTEN` | a stop is in the folder | child runs are asked to cancel |
| `DRAIN_WRITTEN` | a stop that lets child runs finish is in the folder | they are waited for |
| `RECALL_WRITTEN` | why an attempt is given up is in the folder | its child run is asked to cancel |
| `CANCEL_READY` | cancelling child runs was decided | the request is sent |
| `CANCEL_SENT` | Prefect took the request | the child runs' ends are read |
| `SPARED` | child runs were found running and left out of the request | the machine is told so |
| `FINISH_DECIDED` | every batch has its outcome | the last recorded events are written |
| `JOURNAL_WRITTEN` | the parent's recorded events are in the folder | the report is written |
| `REPORT_WRITTEN` | the report is in the folder | the page's last state |
| `PAGE_PUBLISHED` | the page shows the report | the event that the job is over |
| `FINISHED_EMITTED` | that event was sent | the sign of life ends |
| `LEASE_ENDED` | no sign of life any more | the report is handed out |
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Boundary(StrEnum):
    """A place between two steps; see the table above."""

    STAGING_BEGUN = "staging begun"
    ITEMS_STAGED = "items staged"
    JOB_WRITTEN = "job written"
    EPOCH_CLAIMED = "epoch claimed"
    LEASE_BEGUN = "lease begun"
    GATEWAY_OPEN = "gateway open"
    RESTORE_LISTED = "restore listed"
    RESTORE_ASKED = "restore asked"
    RESTORE_READ = "restore read"
    RESTORE_PLAYED = "restore played"
    NOTICES_READ = "notices read"
    PAGE_BEGUN = "page begun"
    STARTED_EMITTED = "started emitted"
    SUBMIT_READY = "submit ready"
    SUBMIT_ANSWERED = "submit answered"
    SUBMIT_PLAYED = "submit played"
    SUBMIT_LOST = "submit lost"
    RESOLVE_READY = "resolve ready"
    RESOLVE_ANSWERED = "resolve answered"
    CHILDREN_READ = "children read"
    END_READ = "end read"
    ATTEMPT_CLOSED = "attempt closed"
    ATTEMPT_LOST = "attempt lost"
    BATCH_SETTLED = "batch settled"
    STOP_WRITTEN = "stop written"
    DRAIN_WRITTEN = "drain written"
    RECALL_WRITTEN = "recall written"
    CANCEL_READY = "cancel ready"
    CANCEL_SENT = "cancel sent"
    SPARED = "spared"
    FINISH_DECIDED = "finish decided"
    JOURNAL_WRITTEN = "journal written"
    REPORT_WRITTEN = "report written"
    PAGE_PUBLISHED = "page published"
    FINISHED_EMITTED = "finished emitted"
    LEASE_ENDED = "lease ended"


hook: Callable[[Boundary], None] | None = None
"""Called at each boundary; None but in tests. What it raises goes through to the code that passes there."""


def passed(boundary: Boundary) -> None:
    """Say that the parent is between two steps now."""
    if hook is not None:
        hook(boundary)
