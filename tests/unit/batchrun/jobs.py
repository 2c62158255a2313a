"""A staged job for tests of the child's side: the folder as a parent leaves it, without a parent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.batchrun.conduct import Chosen
from orchestrator.batchrun.door import NoDoor
from orchestrator.batchrun.options import Options
from orchestrator.core.model import BatchReference
from orchestrator.flows.process import Process
from orchestrator.store import JobFolder, JobRecord, encode_json
from orchestrator.store.layout import index as index_name
from orchestrator.store.layout import part as part_name

NONCE = "n0nce"
CHILD = {"fence_seconds": 0.1, "item_grace_seconds": 0.5, "lease_seconds": 30.0}


class StagedJob:
    """One job of one batch in a folder.

    Args:
        url: Its folder.
        values: The items.
        child: What differs from `CHILD` in what the parent tells its children.
    """

    def __init__(self, url: str | Path, values: Sequence[Any], *, job_id: str = "job-1", tags: Sequence[str] = (),
                 **child: Any) -> None:  # fmt: skip
        self.folder = JobFolder(str(url))
        lines = b"".join(json.dumps([None, value]).encode() + b"\n" for value in values)
        part = part_name(NONCE, 0)
        digest = hashlib.sha256(lines).hexdigest()
        self.folder.store.put(part, lines)
        line = encode_json([0, len(values), 0, 0, len(lines), digest, None]) + b"\n"
        self.folder.store.put(index_name(NONCE, 0), line)
        spec = {"child": {**CHILD, **child}, "tags": list(tags)}
        record = JobRecord(job_id=job_id, nonce=NONCE, created="2026-01-01T00:00:00Z", spec=spec, total=len(values),
                           batches=1, parts=1, bytes=len(lines), hash=digest)  # fmt: skip
        assert self.folder.create_job(record)
        self._counter = 0
        self.count = len(values)
        self._place = (part, len(lines), digest)

    @classmethod
    def opened(cls, url: str, count: int) -> StagedJob:
        """The same job, from another process."""
        job = cls.__new__(cls)
        job.folder, job._counter, job.count = JobFolder(url), 0, count
        record = job.folder.read_job()
        job._place = (part_name(NONCE, 0), record.bytes, record.hash)
        return job

    def reference(self, attempt: int = 0) -> BatchReference:
        part, length, digest = self._place
        record = self.folder.read_job()
        return BatchReference(job=record.job_id, folder=self.folder.url, nonce=NONCE, batch=0, batches=1,
                              attempt=attempt, start=0, count=self.count, part=part, offset=0, length=length,
                              hash=digest)  # fmt: skip

    def beat(self) -> None:
        self._counter += 1
        self.folder.write_lease(self._counter, 1, "stop")

    def outcomes(self) -> list[str]:
        return [record.outcome.value for record in self.folder.outcomes()]


class Door(NoDoor):
    """A door that remembers whether the process would have been ended."""

    def __init__(self) -> None:
        super().__init__()
        self.exits: list[float] = []
        self.cancelling = False

    def end_process_after(self, seconds: float) -> None:
        self.exits.append(seconds)

    def is_cancelling(self) -> bool:
        return self.cancelling


def chosen(process: Any, parameters: dict[str, Any] | None = None, **options: Any) -> Chosen:
    """A process function as `batch_flow` binds it."""
    made = Options(**options)
    read = Process.read(process, made.per)
    return Chosen(lambda job, batch, attempt: read.work(parameters or {}, job, batch, attempt), made)
