"""Every name in a job folder, in one place; docs/job-folder.md shows them to people.

Names are made of numbers and of the job's nonce alone: nothing that an item says ever becomes a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.errors import InternalError

FORMAT = 1  # of every object; a reader refuses a newer one

JOB = "job.json"
LEASE = "lease.json"
REPORT = "report.json"
EPOCHS = "epoch/"
CONTROLS = "control/"
RETRIES = "retries/"
BATCHES = "b/"
ITEMS = "items/"
EVENTS = "events/"

CONTROL_MAX_BYTES = 1 << 20  # largest stop, lease, end record and the like that a reader takes
END_MAX_BYTES = 16 << 20  # it may name many items
JOB_MAX_BYTES = 64 << 20  # job.json and report.json: parameters and texts of the user are in them
PART_BYTES = 8 << 20  # a staged part is closed once it has this many
INDEX_BATCHES = 10_000  # batches per index object

_NONCE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PART = re.compile(r"items/[A-Za-z0-9_-]{1,64}/part-[0-9]{5,9}\.jsonl")
_ATTEMPT = re.compile(r"b/([0-9]{1,12})/a([0-9]{1,6})(?:\.([0-9]{1,9}))?\.(jsonl|end|revoked|recalled|now|alive)")
_STAGED = re.compile(r"items/[A-Za-z0-9_-]{1,64}/(?:part|index)-[0-9]{5,9}\.jsonl")
_STOP = re.compile(r"stop(?:-[0-9]{1,6})?\.json")
_EVENTS = re.compile(r"events/([0-9]{1,12})(?:\.([0-9]{1,9}))?\.jsonl")
_NUMBERED = re.compile(r"(?:epoch|control|retries)/([0-9]{1,12})\.json")


class Kind(StrEnum):
    """What an object of an attempt is, by the end of its name."""

    LOG = "jsonl"
    END = "end"
    REVOKED = "revoked"
    RECALLED = "recalled"
    NOW = "now"
    ALIVE = "alive"


@dataclass(frozen=True, slots=True)
class AttemptName:
    """An attempt's object, read from its name; `segment` is None for the one log of a store that appends."""

    batch: int
    attempt: int
    kind: Kind
    segment: int | None


def check_nonce(nonce: str) -> str:
    """The nonce itself, when it can be part of a name; a bad one is a bug of the caller."""
    if not _NONCE.fullmatch(nonce):
        raise InternalError(f"not a nonce: {nonce[:80]!r}")
    return nonce


def staging(nonce: str) -> str:
    return f"{ITEMS}{check_nonce(nonce)}/"


def part(nonce: str, number: int) -> str:
    return f"{staging(nonce)}part-{number:05d}.jsonl"


def index(nonce: str, number: int) -> str:
    return f"{staging(nonce)}index-{number:05d}.jsonl"


def is_part(name: str) -> bool:
    return bool(_PART.fullmatch(name))


def epoch(number: int) -> str:
    return f"{EPOCHS}{number}.json"


def control(number: int) -> str:
    return f"{CONTROLS}{number}.json"


def retry(number: int) -> str:
    return f"{RETRIES}{number}.json"


def numbered(name: str) -> int | None:
    """The number in the name of an epoch, a control or a retry; None for any other name."""
    match = _NUMBERED.fullmatch(name)
    return int(match[1]) if match else None


def stop(number: int) -> str:
    return "stop.json" if number == 1 else f"stop-{number}.json"


def batch(batch_index: int) -> str:
    return f"{BATCHES}{batch_index}/"


def log(batch_index: int, attempt: int, segment: int | None = None) -> str:
    middle = "" if segment is None else f".{segment}"
    return f"{BATCHES}{batch_index}/a{attempt}{middle}.jsonl"


def end(batch_index: int, attempt: int) -> str:
    return f"{BATCHES}{batch_index}/a{attempt}.end"


def revoked(batch_index: int, attempt: int) -> str:
    return f"{BATCHES}{batch_index}/a{attempt}.revoked"


def recalled(batch_index: int, attempt: int) -> str:
    return f"{BATCHES}{batch_index}/a{attempt}.recalled"


def now(batch_index: int, attempt: int) -> str:
    return f"{BATCHES}{batch_index}/a{attempt}.now"


def alive(batch_index: int, attempt: int) -> str:
    return f"{BATCHES}{batch_index}/a{attempt}.alive"


def events(number: int, segment: int | None = None) -> str:
    """The recorded events of the parent of that number; one object, or segments on object stores."""
    return f"{EVENTS}{number}{'' if segment is None else f'.{segment}'}.jsonl"


def events_name(name: str) -> tuple[int, int] | None:
    """Parent and segment (0 when there is one object alone) in the name of recorded events; None for another name."""
    match = _EVENTS.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def is_ours(name: str) -> bool:
    """Whether an object of that name belongs to a job: it is one of those that we write, not merely beside them."""
    kinds = (_STOP, _NUMBERED, _STAGED, _ATTEMPT, _EVENTS)
    return name in (JOB, LEASE, REPORT) or any(kind.fullmatch(name) for kind in kinds)


def attempt_name(name: str) -> AttemptName | None:
    """What the object of that name is; None when it is none of an attempt's."""
    match = _ATTEMPT.fullmatch(name)
    if not match or (match[3] is not None and match[4] != Kind.LOG):
        return None
    return AttemptName(int(match[1]), int(match[2]), Kind(match[4]), None if match[3] is None else int(match[3]))
