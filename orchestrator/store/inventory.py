"""What lies in a storage: every job folder, what is left of others, and what is not ours.

Reading only, one listing per folder. Nothing here decides; and whatever cannot be understood is told, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.errors import ConfigurationError, OrchestratorError
from orchestrator.store import layout
from orchestrator.store.folder import JobFolder
from orchestrator.store.opening import open_store
from orchestrator.store.primitives import Entry, check_job_id, job_folder_url
from orchestrator.store.records import JobRecord

AT_ONCE = 16  # folders looked at at the same time on object stores


class FolderKind(StrEnum):
    """What a folder of a storage is."""

    JOB = "job"
    REMAINS = "remains"  # objects of ours alone, and no job.json: never became a job, or half removed
    DAMAGED = "damaged"  # a job.json that cannot be read, or is not this folder's
    FOREIGN = "foreign"


@dataclass(frozen=True)
class FolderFacts:
    """One folder of a storage.

    Args:
        size, objects: Of everything in it.
        newest: When anything in it was written last, in epoch seconds; None where the storage does not say.
        reason: Why it is damaged; why the report of a job cannot be read.
        over: The job has a report.
        over_at: When the report was written.
        epoch, parent: The newest parent's number and what it said of itself; 0 and {} when there was none.
        sign_of_life: When a parent was last seen: its beat, else its beginning, else the job's.
    """

    name: str
    url: str
    kind: FolderKind
    size: int = 0
    objects: int = 0
    newest: float | None = None
    reason: str = ""
    record: JobRecord | None = None
    over: bool = False
    over_at: float | None = None
    epoch: int = 0
    parent: Mapping[str, Any] = field(default_factory=dict)
    sign_of_life: float | None = None

    @property
    def lease_seconds(self) -> float:
        """So long its child runs bear the silence of their parent."""
        return self.child_seconds("lease_seconds", 60.0)

    def child_seconds(self, name: str, default: float) -> float:
        """A time that the job's child runs were given; a folder may say anything."""
        child = self.record.spec.get("child") if self.record is not None else None
        value = child.get(name) if isinstance(child, Mapping) else None
        return float(value) if isinstance(value, (int, float)) and 0 <= value <= 86_400 else default


def look(root: str) -> list[FolderFacts]:
    """Every folder right below a storage root that could hold a job, by name; links to folders are left out.

    Raises:
        StoreUnavailableError: the storage itself cannot be listed.
    """
    store = open_store(root)
    names = [name for name in store.folders() if _can_be_a_job(name)]
    if store.appends:
        return [look_at(root, name) for name in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda name: look_at(root, name), names))


def _can_be_a_job(name: str) -> bool:
    try:
        check_job_id(name)
    except ConfigurationError:
        return False
    return True


def look_at(root: str, name: str) -> FolderFacts:
    """One folder as it is now; of kind `foreign` when there is nothing of ours in it."""
    url = job_folder_url(root, name)
    try:
        folder = JobFolder(url)
        entries = {entry.name: entry for entry in folder.store.list()}
    except OrchestratorError as e:
        return FolderFacts(name, url, FolderKind.DAMAGED, reason=str(e))
    facts: dict[str, Any] = {
        "size": sum(entry.size for entry in entries.values()),
        "objects": len(entries),
        "newest": max((e.modified for e in entries.values() if e.modified is not None), default=None),
    }
    if layout.JOB not in entries:
        ours = [layout.is_ours(entry) for entry in entries]
        kind = FolderKind.REMAINS if ours and all(ours) else FolderKind.FOREIGN
        return FolderFacts(name, url, kind, **facts)
    try:
        record = folder.read_job()
    except OrchestratorError as e:
        return FolderFacts(name, url, FolderKind.DAMAGED, reason=str(e), **facts)
    if record.job_id != name:
        reason = f"its job.json is that of job {record.job_id[:80]!r}: a copy?"
        return FolderFacts(name, url, FolderKind.DAMAGED, reason=reason, **facts)
    return FolderFacts(name, url, FolderKind.JOB, record=record, **facts, **_life(folder, entries))


def _life(folder: JobFolder, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """How a job's life went so far."""
    facts: dict[str, Any] = {}
    report = entries.get(layout.REPORT)
    if report is not None:
        facts.update(over=True, over_at=report.modified)
        try:
            folder.read_report()
        except OrchestratorError as e:
            facts["reason"] = str(e)
        return facts
    epochs = [layout.numbered(name) or 0 for name in entries if name.startswith(layout.EPOCHS)]
    epoch = max(epochs, default=0)
    signs = (entries.get(name) for name in (layout.LEASE, layout.epoch(epoch), layout.JOB))
    seen = [entry.modified for entry in signs if entry is not None and entry.modified is not None]
    return facts | {
        "epoch": epoch,
        "parent": folder.read_parent(epoch) if epoch else {},
        "sign_of_life": max(seen, default=None),
    }
