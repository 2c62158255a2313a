"""Links between a job and the jobs that ran again what it left.

The later job names the earlier one in its own `job.json`, written first; `retries/<n>.json` in the earlier job's folder
names the later one, written after that job exists. A crash in between leaves a link in one direction only, which
whoever comes by next completes. A link whose job is gone counts for nothing: its items are where they were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.core.model import ItemOutcome
from orchestrator.errors import ConfigurationError, InternalError, JobNotFoundError, StorageError
from orchestrator.store import layout
from orchestrator.store.folder import JobFolder
from orchestrator.store.jsonl import encode_json
from orchestrator.store.primitives import check_job_id, job_folder_url
from orchestrator.store.records import JobRecord, parse_object

LEFT = (ItemOutcome.FAILED, ItemOutcome.UNKNOWN, ItemOutcome.NOT_STARTED)


@dataclass(frozen=True, slots=True)
class Retry:
    """A later job over items of this one.

    Args:
        number: In the order in which they were linked, from 1.
        only: How the items that it took had ended here.
    """

    number: int
    job_id: str
    only: frozenset[ItemOutcome]


def retried_outcomes(record: JobRecord) -> frozenset[ItemOutcome]:
    """How the items that this job took from the earlier one had ended there; empty when it took none."""
    source = record.spec.get("source")
    wanted = source.get("outcome") if isinstance(source, dict) else None
    return outcomes_of(wanted) if record.retry_of is not None else frozenset()


def origin(folder: JobFolder, source: Mapping[str, Any]) -> dict[str, str]:
    """What `job.json` says of the job whose items are run again: its id and nonce; nothing for any other items.

    Args:
        folder: Of the new job.
        source: As it describes itself. Items that succeeded there are a further step, nothing run again.
    """
    if source.get("kind") != "job" or not outcomes_of(source.get("outcome")) & set(LEFT):
        return {}
    job_id = str(source["job"])
    return {"retry_of": job_id, "retry_of_nonce": beside(folder, job_id).read_job().nonce}


def outcomes_of(names: Any) -> frozenset[ItemOutcome]:
    """Outcomes by name, as a source describes them; what is not known is passed over."""
    if not isinstance(names, list):
        return frozenset()
    if "all" in names:
        return frozenset(ItemOutcome)
    return frozenset(o for o in ItemOutcome if o.value in names)


def beside(folder: JobFolder, job_id: str) -> JobFolder:
    """The folder of another job in the same storage."""
    return JobFolder(job_folder_url(folder.url.rpartition("/")[0], check_job_id(job_id)))


def read_retries(folder: JobFolder) -> list[Retry]:
    """The links of a job in their order; one listing, and one small read for each. Malformed ones are passed over."""
    numbers = sorted({layout.numbered(entry.name) or 0 for entry in folder.store.list(layout.RETRIES)} - {0})
    found = []
    for number in numbers:
        name = layout.retry(number)
        data = folder.store.get(name, 0, layout.CONTROL_MAX_BYTES + 1)
        if data is None:
            continue
        try:
            read = parse_object(data, name, layout.CONTROL_MAX_BYTES)
            found.append(Retry(number, check_job_id(str(read.get("job_id"))), outcomes_of(read.get("only"))))
        except (StorageError, ConfigurationError):
            continue  # not ours: nobody could follow it
    return found


def living_retries(folder: JobFolder) -> list[Retry]:
    """The links whose job exists, each job once."""
    found: dict[str, Retry] = {}
    for retry in read_retries(folder):
        if retry.job_id not in found and _is_retry_of(beside(folder, retry.job_id), folder.read_job()):
            found[retry.job_id] = retry
    return list(found.values())


def link(folder: JobFolder) -> list[Retry]:
    """Link the earlier job to this one, unless that is done or there is no such job any more.

    Returns:
        The links before this one that share items with it, jobs that are gone left out.
    """
    record = folder.read_job()
    if record.retry_of is None:
        return []
    only = retried_outcomes(record)
    earlier = beside(folder, record.retry_of)
    try:
        if not _is_retry_of(folder, earlier.read_job()):
            return []
    except JobNotFoundError:
        return []
    number = next((r.number for r in read_retries(earlier) if r.job_id == record.job_id), None)
    if number is None:
        number = _write(earlier, record.job_id, only)
    return [r for r in living_retries(earlier) if r.number < number and r.only & only]


def _write(earlier: JobFolder, job_id: str, only: Collection[ItemOutcome]) -> int:
    names = [o.value for o in ItemOutcome if o in only]
    data = encode_json({"format": layout.FORMAT, "job_id": job_id, "only": names})
    taken = {layout.numbered(entry.name) for entry in earlier.store.list(layout.RETRIES)}
    for number in range(1, len(taken) + 1000):
        if number in taken:
            continue
        if earlier.store.put_new(layout.retry(number), data) or earlier.store.get(layout.retry(number)) == data:
            return number
    raise InternalError(f"no free number for a link of {job_id!r}")


def check_not_taken(folder: JobFolder, wanted: Iterable[ItemOutcome]) -> None:
    """Nothing, when no item that was left so was handed to another job.

    Raises:
        ConfigurationError: some were; names the job that has them.
    """
    counts = (folder.read_report() or {}).get("items")
    some = {o for o in wanted if o in LEFT and not (isinstance(counts, dict) and counts.get(o.value) == 0)}
    for retry in living_retries(folder):
        if shared := retry.only & some:
            job_id = folder.read_job().job_id
            names = ", ".join(o.value.replace("_", " ") for o in ItemOutcome if o in shared)
            raise ConfigurationError(
                f"the {names} items of job {job_id!r} were handed to job {retry.job_id!r} already; run again what that "
                f"one leaves (`orchestrator retry {retry.job_id}`), or these once more with `--again` "
                f"(in a source: `job:{job_id}?outcome=...&again=true`)",
                field="items",
            )


def _is_retry_of(later: JobFolder, earlier: JobRecord) -> bool:
    """Whether that job exists and names the earlier one; an id may have come to mean another job since."""
    try:
        record = later.read_job()
    except JobNotFoundError:
        return False
    except StorageError:
        return True  # it is there, and damaged or newer than we are
    nonce = record.spec.get("retry_of_nonce")
    return record.retry_of == earlier.job_id and nonce in (None, earlier.nonce)
