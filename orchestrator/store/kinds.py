"""The kinds of sources, each a value that can say what it is and be read once."""

from __future__ import annotations

import glob
import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.core.model import ItemOutcome
from orchestrator.errors import ConfigurationError, SourceError
from orchestrator.store.folder import JobFolder
from orchestrator.store.formats import READERS, Row, opened, plain_file, read_jsonl
from orchestrator.store.jsonl import NotJsonError, encode_json
from orchestrator.store.objects import file_system
from orchestrator.store.primitives import is_local, job_folder_url, redact
from orchestrator.store.retries import check_not_taken
from orchestrator.store.series import is_series, jobs_like


class Source(Protocol):
    """A collection of items."""

    @property
    def name(self) -> str:
        """As people named it, without secrets."""
        ...

    @property
    def parsed(self) -> bool:
        """Its values come out of a JSON parser."""
        ...

    def describe(self) -> dict[str, Any]:
        """The source as JSON, for the job's spec."""
        ...

    def read(self) -> Iterator[Row]:
        """Its items.

        Raises:
            SourceError: it cannot be read or is malformed.
        """
        ...


@dataclass(frozen=True)
class InlineSource:
    """A list of items."""

    items: Sequence[Any]
    name: str = "the list of items"
    parsed: bool = False

    def describe(self) -> dict[str, Any]:
        whole = hashlib.sha256()
        for number, value in enumerate(self.items, 1):
            try:
                whole.update(encode_json(value) + b"\n")
            except NotJsonError as e:
                raise SourceError(str(e), source=self.name, line=number) from e
        return {"kind": "inline", "count": len(self.items), "hash": whole.hexdigest()}

    def read(self) -> Iterator[Row]:
        return (Row(number, value) for number, value in enumerate(self.items, 1))


@dataclass(frozen=True)
class IterableSource:
    """Anything that can be gone through, once."""

    items: Iterable[Any]
    name: str = "the iterable of items"
    parsed: bool = False

    def describe(self) -> dict[str, Any]:
        return {"kind": "iterable"}

    def read(self) -> Iterator[Row]:
        return _rows_of(self.items, self.name)


@dataclass(frozen=True)
class RangeSource:
    """Whole numbers from `start` up to but not including `stop`."""

    start: int
    stop: int
    step: int = 1
    parsed: bool = True

    @property
    def name(self) -> str:
        step = "" if self.step == 1 else f":{self.step}"
        return f"range:{self.start}:{self.stop}{step}"

    def describe(self) -> dict[str, Any]:
        return {"kind": "range", "start": self.start, "stop": self.stop, "step": self.step}

    def read(self) -> Iterator[Row]:
        return (Row(None, number) for number in range(self.start, self.stop, self.step))


@dataclass(frozen=True)
class FileSource:
    """A file of one of the formats, at a path or an fsspec URL."""

    url: str  # absolute
    format: str

    @property
    def name(self) -> str:
        return redact(self.url)

    @property
    def parsed(self) -> bool:
        return self.format != "parquet"

    def describe(self) -> dict[str, Any]:
        described = {"kind": "file", "path": self.url, "format": self.format}
        if (digest := _digest_of(self.url)) is not None:
            described["hash"] = digest  # the same path with other content is another source
        return described

    def read(self) -> Iterator[Row]:
        with opened(self.url, self.name) as file:
            yield from READERS[self.format](file, self.name)


_HASHED_WHOLE = 1 << 30  # bytes; a file above is told apart by its size, beginning and end


def _digest_of(url: str) -> str | None:
    """SHA-256 of a local file's content (of a very large one: its size, beginning and end); None for any other."""
    if not is_local(url):
        return None
    try:
        with open(url, "rb", opener=plain_file) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _HASHED_WHOLE:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256(str(size).encode() + file.read(1 << 20))
            file.seek(-(1 << 20), os.SEEK_END)
            digest.update(file.read())
            return digest.hexdigest()
    except OSError:
        return None  # reading it will say what is wrong


@dataclass(frozen=True)
class StdinSource:
    """JSON Lines on standard input."""

    name: str = "standard input"
    parsed: bool = True

    def describe(self) -> dict[str, Any]:
        return {"kind": "stdin"}

    def read(self) -> Iterator[Row]:
        return read_jsonl(sys.stdin.buffer, self.name)


@dataclass(frozen=True)
class GlobSource:
    """The files that match a pattern, as absolute paths or URLs in sorted order; their content is not read."""

    pattern: str  # absolute
    parsed: bool = True

    @property
    def name(self) -> str:
        return f"glob:{redact(self.pattern)}"

    def describe(self) -> dict[str, Any]:
        return {"kind": "glob", "pattern": self.pattern}

    def read(self) -> Iterator[Row]:
        base = re.split(r"[*?\[]", self.pattern, maxsplit=1)[0].rpartition("/")[0]
        try:
            if is_local(self.pattern):
                if not os.path.isdir(base or "/"):
                    raise SourceError(f"there is no folder {base}", source=self.name)
                found = [path for path in glob.glob(self.pattern, recursive=True) if os.path.isfile(path)]
            else:
                fs = file_system(self.pattern)
                details = fs.glob(self.pattern, detail=True)
                found = [str(fs.unstrip_protocol(p)) for p, info in details.items() if info.get("type") == "file"]
        except ConfigurationError:
            raise
        except Exception as e:
            raise SourceError(f"cannot be listed: {' '.join(str(e).split())[:300]}", source=self.name) from e
        for path in sorted(found):
            yield Row(None, path)


@dataclass(frozen=True)
class PythonSource:
    """What a callable yields; it is imported and called, without arguments, when the source is read."""

    module: str
    attribute: str
    parsed: bool = False

    @property
    def name(self) -> str:
        return f"python:{self.module}:{self.attribute}"

    def describe(self) -> dict[str, Any]:
        return {"kind": "python", "callable": f"{self.module}:{self.attribute}"}

    def read(self) -> Iterator[Row]:
        try:
            found: Any = importlib.import_module(self.module)
        except ModuleNotFoundError as e:
            raise SourceError(f"there is no module {e.name!r} on Python's path here", source=self.name) from e
        except (Exception, SystemExit) as e:
            raise SourceError(f"importing it raised {_named(e)}", source=self.name) from e
        for part in self.attribute.split("."):
            if not hasattr(found, part):
                raise SourceError(f"{self.module} has no {self.attribute}", source=self.name)
            found = getattr(found, part)
        if not callable(found):
            raise SourceError("it is not callable; give a function that yields items", source=self.name)
        yield from CallableSource(found, self.name).read()


@dataclass(frozen=True)
class CallableSource:
    """What a function yields, called without arguments when the source is read."""

    function: Callable[[], Iterable[Any]]
    name: str = "the function of items"
    parsed: bool = False

    def describe(self) -> dict[str, Any]:
        module = getattr(self.function, "__module__", "?")
        return {"kind": "function", "callable": f"{module}:{getattr(self.function, '__qualname__', '?')}"}

    def read(self) -> Iterator[Row]:
        try:
            items = self.function()
        except (Exception, SystemExit) as e:
            raise SourceError(f"raised {_named(e)}", source=self.name) from e
        if inspect.iscoroutine(items):
            items.close()
        if not isinstance(items, Iterable) or isinstance(items, str | bytes | Mapping):
            kind = "is asynchronous" if hasattr(items, "__aiter__") or inspect.iscoroutine(items) else "gave no items"
            raise SourceError(f"{kind}; give a plain function that yields items", source=self.name)
        yield from _rows_of(items, self.name)


@dataclass(frozen=True)
class JobSource:
    """Items of an earlier job, by how they ended there; they keep their keys."""

    job_id: str
    storage: str  # absolute URL of the storage root
    outcomes: tuple[ItemOutcome, ...]  # () for all
    again: bool = False  # also what another job was given already
    parsed: bool = True

    @property
    def name(self) -> str:
        return f"job:{self.job_id}?outcome={','.join(self.outcomes) or 'all'}"

    def describe(self) -> dict[str, Any]:
        described = {"kind": "job", "job": self.job_id, "outcome": [o.value for o in self.outcomes] or ["all"]}
        return described | {"again": True} if self.again else described

    def read(self) -> Iterator[Row]:
        folder = _earlier(self.storage, self.job_id)
        if not self.again:
            check_not_taken(folder, self.outcomes or tuple(ItemOutcome))
        for item, _ in folder.items(self.outcomes or tuple(ItemOutcome)):
            yield Row(item.index + 1, item.value, item.key)


@dataclass(frozen=True)
class ResultsSource:
    """The results of an earlier job's succeeded items, in its input order; they keep their items' keys.

    A pattern of job ids stands for all jobs of that series that are over, one after the other, the oldest first.
    """

    job_id: str
    storage: str
    parsed: bool = True

    @property
    def name(self) -> str:
        return f"results:{self.job_id}"

    def describe(self) -> dict[str, Any]:
        return {"kind": "results", "job": self.job_id}

    def read(self) -> Iterator[Row]:
        for folder in self._folders():
            for record in folder.outcomes((ItemOutcome.SUCCEEDED,)):
                yield Row(record.index + 1, record.result, record.key)

    def _folders(self) -> list[JobFolder]:
        if not is_series(self.job_id):
            return [_earlier(self.storage, self.job_id)]
        over = [job for job in jobs_like(self.storage, self.job_id) if job.read_report() is not None]
        if not over:
            raise SourceError("there is no job of such an id that is over", source=self.name)
        return over


def _earlier(storage: str, job_id: str) -> JobFolder:
    folder = JobFolder(job_folder_url(storage, job_id))
    folder.read_job()
    if folder.read_report() is None:
        # What it leaves is not known yet: items taken now might run in both jobs.
        reason = f"job {job_id!r} is not over: wait for it, stop it, or go on with it by `orchestrator resume {job_id}`"
        raise SourceError(reason, source=f"job:{job_id}")
    return folder


def _rows_of(items: Iterable[Any], name: str) -> Iterator[Row]:
    number = 0
    try:
        for value in items:
            number += 1
            yield Row(number, value)
    except SourceError:
        raise
    except (Exception, SystemExit) as e:
        raise SourceError(f"raised {_named(e)}", source=name, line=number + 1) from e


def _named(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
