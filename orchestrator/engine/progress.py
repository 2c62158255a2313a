"""Progress of a running child as a Prefect progress artifact, and back.

The artifact is news for the parent (its `metadata_`) and a bar on the child's page for people (its `data`, percent).
It has no key: a key would add collection rows and events for every child. Everything here is bounded, because the
server cuts what is not: metadata values above 500 characters lose their end.
Source: prefect _internal/schemas/validators.py `validate_max_metadata_length`, 3.8.8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from orchestrator.core.model import Counts, Failure, Progress

ARTIFACT_TYPE = "progress"
_VALUE_CHARS = 500
_NAME_CHARS = 80
_KEY_CHARS = 120
_MAX_ERROR_TYPES = 10
_NUMBER = re.compile(r"[0-9]{1,15}")


def encode(progress: Progress, total: int, job: str) -> tuple[float, dict[str, str]]:
    """The artifact's `data` (percent done, 0..100) and `metadata_` (strings of at most 500 characters each).

    Args:
        progress: News to tell; its texts are masked already.
        total: Items of the batch; 0 counts as done.
        job: The job id, for people who find the artifact.
    """
    counts = progress.counts
    percent = 100.0 if total <= 0 else min(100.0, round(100 * counts.settled / total, 1))
    metadata = {
        "job": _clean(job, _VALUE_CHARS),
        "batch": str(progress.batch),
        "attempt": str(progress.attempt),
        "sequence": str(progress.sequence),
        "total": str(total),
        "succeeded": str(counts.succeeded),
        "failed": str(counts.failed),
        "trailing_failures": str(counts.trailing_failures),
    }
    if counts.errors:
        metadata["errors"] = _errors_text(counts.errors)
    if counts.first_failure is not None:
        metadata["first_failure"] = _failure_text(counts.first_failure)
    return percent, metadata


def decode(metadata: object) -> Progress | None:
    """The news in an artifact's `metadata_`; None when it is not ours or a number in it cannot be right.

    Whoever can write to the API can write an artifact: numbers are taken strictly, and error texts that cannot be
    read are left out rather than believed.
    """
    if not isinstance(metadata, Mapping):
        return None
    numbers = {name: _number(metadata.get(name)) for name in ("batch", "attempt", "sequence", "succeeded", "failed")}
    trailing = _number(metadata.get("trailing_failures", "0"))
    total = _number(metadata.get("total", ""))
    batch, attempt, sequence, succeeded, failed = numbers.values()
    if batch is None or attempt is None or sequence is None or succeeded is None or failed is None or trailing is None:
        return None
    if trailing > failed or (total is not None and succeeded + failed > total):
        return None
    counts = Counts(
        succeeded=succeeded,
        failed=failed,
        trailing_failures=trailing,
        errors=_read_errors(metadata.get("errors")),
        first_failure=_read_failure(metadata.get("first_failure")),
    )
    return Progress(batch=batch, attempt=attempt, sequence=sequence, counts=counts)


def _errors_text(errors: Mapping[str, int]) -> str:
    """The most frequent types as compact JSON; what does not fit is left out, whole entries only."""
    kept: dict[str, int] = {}
    text = "{}"
    for name, count in sorted(errors.items(), key=lambda entry: (-entry[1], entry[0]))[:_MAX_ERROR_TYPES]:
        longer = _compact({**kept, _clean(name, _NAME_CHARS): count})
        if len(longer) > _VALUE_CHARS:
            break
        kept[_clean(name, _NAME_CHARS)] = count
        text = longer
    return text


def _failure_text(failure: Failure) -> str:
    record = {
        "index": failure.index,
        "key": _clean(failure.key, _KEY_CHARS),
        "type": _clean(failure.type, _NAME_CHARS),
        "text": _clean(failure.text, _VALUE_CHARS),
    }
    # Escapes make a text longer than its characters: give up what is too much, the text first.
    for name in ("text", "key", "type"):
        while (excess := len(_compact(record)) - _VALUE_CHARS) > 0 and record[name]:
            record[name] = str(record[name])[: -max(1, excess // 6)]
    return _compact(record)


def _read_errors(text: object) -> dict[str, int]:
    data = _json(text)
    if not isinstance(data, dict) or len(data) > _MAX_ERROR_TYPES:
        return {}
    return {str(k)[:_NAME_CHARS]: v for k, v in data.items() if type(v) is int and 0 <= v < 10**15}


def _read_failure(text: object) -> Failure | None:
    data = _json(text)
    if not isinstance(data, dict):
        return None
    index, key, kind, said = data.get("index"), data.get("key"), data.get("type"), data.get("text")
    if type(index) is not int or index < 0:
        return None
    if not (isinstance(key, str) and isinstance(kind, str) and isinstance(said, str)):
        return None
    return Failure(index=index, key=key[:_VALUE_CHARS], type=kind[:_NAME_CHARS], text=said[:_VALUE_CHARS])


def _number(value: object) -> int | None:
    # Not `\d` or str.isdigit: those take other scripts' digits too.
    return int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def _json(text: object) -> Any:
    if not isinstance(text, str) or len(text) > 2 * _VALUE_CHARS:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _clean(text: str, limit: int) -> str:
    """At most `limit` characters that any database and wire takes: no NUL, no lone surrogates."""
    return text[:limit].replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
