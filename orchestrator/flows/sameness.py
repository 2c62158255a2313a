"""Whether a request is the one that a job was created with: only then the same id goes on with that job."""

from __future__ import annotations

import json

from orchestrator.errors import JobConflictError
from orchestrator.flows.request import JobSpec, differences
from orchestrator.store import JobRecord, Source


def check_same(record: JobRecord, spec: JobSpec, source: Source) -> None:
    """Refuse to take a job over under another spec.

    Raises:
        JobConflictError: with the differences.
    """
    theirs = {**record.spec.get("job", {}), "items": record.spec.get("source")}
    ours = {**spec.to_json(), "items": source.describe()}
    for request in (theirs, ours):
        request.pop("max_requests_per_minute", None)  # the parent's own affair: another one may have another
    if different := differences(theirs, json.loads(json.dumps(ours))):
        listed = "; ".join(_difference(name, a, b) for name, (a, b) in different.items())
        raise JobConflictError(
            f"job {record.job_id!r} exists with another request ({listed}); give another id, or the same request to "
            "resume it",
            differences=different,
        )


def _difference(name: str, theirs: object, ours: object) -> str:
    """What is another in two requests, in one clause; of two sources only that in which they differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and theirs.get("kind") == ours.get("kind"):
        parts = differences(theirs, ours)
        if parts.keys() == {"hash"}:
            return f"{name}: the content of {str(theirs.get('path', 'the source'))[:200]} is another than it was then"
        return "; ".join(f"{name}.{part}: {_short(a)} there, {_short(b)} here" for part, (a, b) in parts.items())
    return f"{name}: {_short(theirs)} there, {_short(ours)} here"


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
