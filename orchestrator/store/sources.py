"""Where items come from. A source is read once, at staging; afterwards the job folder is all there is.

`parse_source` reads the text that people write (`--items`, the form), `source_from_json` the mapping that `describe`
gives, `as_source` whatever Python code hands over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from orchestrator.core.model import ItemOutcome
from orchestrator.errors import ConfigurationError, SourceError
from orchestrator.store.formats import READERS, format_of
from orchestrator.store.kinds import (
    CallableSource,
    FileSource,
    GlobSource,
    InlineSource,
    IterableSource,
    JobSource,
    PythonSource,
    RangeSource,
    ResultsSource,
    Source,
    StdinSource,
)
from orchestrator.store.primitives import absolute_url, check_job_id, is_local, redact, refuse_user_info, scheme_of
from orchestrator.store.series import check_series, is_series

__all__ = [
    "CallableSource",
    "FileSource",
    "GlobSource",
    "InlineSource",
    "IterableSource",
    "JobSource",
    "PythonSource",
    "RangeSource",
    "ResultsSource",
    "Source",
    "SourcePolicy",
    "StdinSource",
    "as_source",
    "parse_source",
    "source_from_json",
]

MOST_NUMBERS = 10**9
_KNOWN = ".txt, .csv, .json, .jsonl, .ndjson, .parquet, each also with .gz, .bz2 or .xz"


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """What a source may make this process do.

    Args:
        python_modules: Modules (with what lies below them) that `python:` sources may name; None for any.
        allow_http: Whether `http(s)://` files are read.
        allow_stdin: Whether `-` is read; a deployed parent has nobody who types.
    """

    python_modules: tuple[str, ...] | None = None
    allow_http: bool = True
    allow_stdin: bool = True


def parse_source(text: str, *, storage: str | None = None, policy: SourcePolicy = SourcePolicy()) -> Source:
    """The source that a text names.

    Args:
        text: A path or URL with a known suffix, `glob:PATTERN`, `range:A:B`, `python:MODULE:CALLABLE`,
            `job:ID?outcome=failed,unknown`, `results:ID` (or a pattern, `results:nightly-*`), or `-`.
        storage: Storage root, where earlier jobs are found.
        policy: What the source may make this process do.

    Raises:
        SourceError: it names none, or one that is not allowed. Nothing is read yet.
    """
    text = text.strip()
    if not text:
        raise SourceError(f"names no items; give a file ({_KNOWN}), glob:, range:, job: or results:", source="''")
    kind, colon, rest = text.partition(":")
    if text == "-":
        return _stdin(policy)
    if colon and not rest.startswith("//"):
        if kind == "range":
            return _parse_range(rest, text)
        if kind == "glob":
            if rest.startswith("block:"):  # whoever gets one of the paths would lack the block's credentials
                raise SourceError("a block cannot be listed as items; give a path or a URL", source=text[:100])
            return GlobSource(_place(rest, text, policy))
        if kind == "python":
            return _parse_python(rest, text, policy)
        if kind == "job":
            return _parse_job(rest, text, storage)
        if kind == "results":
            return ResultsSource(_job_id(rest, text, check_series if is_series(rest) else check_job_id),
                                 _root(storage, text))  # fmt: skip
    return _file(text, None, policy)


def source_from_json(
    data: Mapping[str, Any], *, storage: str | None = None, policy: SourcePolicy = SourcePolicy()
) -> Source:
    """The source that a mapping describes: `{"kind": "file", "path": ...}` and so on, as `describe` gives it.

    Besides: `{"kind": "inline", "items": [...]}`; for files, `format` only where the name does not say it.

    Raises:
        SourceError: it describes none, or one that is not allowed.
    """
    kind = data.get("kind")

    def text(field: str) -> str:
        value = data.get(field)
        if not isinstance(value, str) or not value.strip():
            raise SourceError(f"a source of kind {kind!r} needs the text {field!r}", source=str(kind))
        return value.strip()

    def number(field: str, default: int | None = None) -> int:
        value = data.get(field, default)
        if type(value) is not int:
            raise SourceError(f"a range needs the whole number {field!r}", source="range")
        return value

    if kind == "inline":
        items = data.get("items")
        if not isinstance(items, list):
            raise SourceError("a source of kind 'inline' needs the list 'items'", source="inline")
        return InlineSource(items)
    if kind == "file":
        return _file(text("path"), data.get("format"), policy)
    if kind == "range":
        return _range(number("start", 0), number("stop"), number("step", 1), "range")
    if kind == "glob":
        return parse_source(f"glob:{text('pattern')}", policy=policy)
    if kind == "python":
        return parse_source(f"python:{text('callable')}", policy=policy)
    if kind == "results":
        return parse_source(f"results:{text('job')}", storage=storage)
    if kind == "job":
        wanted = data.get("outcome", ["failed"])
        names = wanted if isinstance(wanted, str) else ",".join(map(str, wanted))
        again = "&again=true" if data.get("again") is True else ""
        return parse_source(f"job:{text('job')}?outcome={names}{again}", storage=storage)
    if kind == "stdin":
        return _stdin(policy)
    raise SourceError(
        "unknown kind of source; known are file, glob, inline, job, python, range, results", source=str(kind)[:100]
    )


def as_source(items: Any, *, storage: str | None = None, policy: SourcePolicy = SourcePolicy()) -> Source:
    """The source that Python code means: a text, a mapping with `kind`, a range, a list, any iterable, a function.

    Raises:
        SourceError: it means none.
    """
    if isinstance(items, str | os.PathLike):
        return parse_source(os.fspath(items), storage=storage, policy=policy)
    if isinstance(items, Mapping):
        return source_from_json(items, storage=storage, policy=policy)
    if isinstance(items, range):
        return RangeSource(items.start, items.stop, items.step)
    if isinstance(items, list | tuple):
        return InlineSource(items)
    if isinstance(items, Iterable) and not isinstance(items, bytes | bytearray):
        return IterableSource(items)
    if callable(items):
        return CallableSource(items)
    if all(hasattr(items, member) for member in ("describe", "read", "name")):
        source: Source = items
        return source
    raise SourceError(
        "is no source of items; give a list, an iterable, a function that yields, a range, or a text",
        source=type(items).__name__,
    )


def _stdin(policy: SourcePolicy) -> Source:
    if not policy.allow_stdin:
        raise SourceError("a deployed run has no standard input; give a file", source="-")
    return StdinSource()


def _file(text: str, kind: object, policy: SourcePolicy) -> Source:
    url = _place(text, text, policy)
    found = kind or format_of(url)
    if found not in READERS:
        if kind is not None:
            raise SourceError(f"unknown format {str(kind)[:50]!r}; known are {', '.join(READERS)}", source=redact(text))
        reason = f"the name does not say its format; known are {_KNOWN}"
        if is_local(url) and os.path.isdir(url):
            reason = f"is a folder; to fan out over the files in it use glob:{redact(text).rstrip('/')}/*"
        raise SourceError(reason, source=redact(text))
    return FileSource(url, str(found))


def _place(url: str, text: str, policy: SourcePolicy) -> str:
    try:
        refuse_user_info(url, field="items")
        if scheme_of(url) in ("http", "https"):
            if not policy.allow_http:
                raise SourceError(
                    "http(s) sources are not allowed here; set ORCHESTRATOR_ALLOW_HTTP_SOURCES=true where the parent "
                    "runs, or put the file in storage",
                    source=redact(text),
                )
            return url
        return absolute_url(url, field="items")
    except SourceError:
        raise
    except ConfigurationError as e:
        raise SourceError(str(e).removeprefix("items: "), source=redact(text)) from e


def _parse_range(rest: str, text: str) -> Source:
    parts = rest.split(":")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3):
        raise SourceError("is no range; write range:FIRST:END, for example range:0:1000", source=text[:100])
    return _range(numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else 1, text)


def _range(start: int, stop: int, step: int, text: str) -> Source:
    if step == 0:
        raise SourceError("a range cannot have step 0", source=text[:100])
    if (stop - start) * step < 0:
        raise SourceError("this range is empty: give a step of the other sign", source=text[:100])
    if abs(stop - start) // abs(step) > MOST_NUMBERS:
        raise SourceError(f"a range may have {MOST_NUMBERS:,} numbers at most", source=text[:100])
    return RangeSource(start, stop, step)


def _parse_python(rest: str, text: str, policy: SourcePolicy) -> Source:
    module, _, attribute = rest.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise SourceError("is no callable; write python:MODULE:CALLABLE", source=text[:100])
    allowed = policy.python_modules
    if allowed is not None and not any(module == name or module.startswith(f"{name}.") for name in allowed):
        raise SourceError(
            f"python sources of {module!r} are not allowed here; name the module in ORCHESTRATOR_PYTHON_SOURCES where "
            "the parent runs",
            source=text[:100],
        )
    return PythonSource(module, attribute)


def _parse_job(rest: str, text: str, storage: str | None) -> Source:
    job_id, _, query = rest.partition("?")
    options = parse_qs(query, keep_blank_values=True)
    if query and not set(options) <= {"outcome", "again"}:
        raise SourceError("only ?outcome= and &again=true can follow a job's id", source=text[:100])
    again = options.get("again", ["false"])[-1].strip().lower()
    if again not in ("true", "false"):
        raise SourceError(f"again is true or false, not {again[:50]!r}", source=text[:100])
    names = [name.strip() for value in options.get("outcome", ["failed"]) for name in value.split(",")]
    known = [outcome.value for outcome in ItemOutcome]
    if unknown := [name for name in names if name not in (*known, "all")]:
        raise SourceError(f"unknown outcome {unknown[0][:50]!r}; known are {', '.join(known)}, all", source=text[:100])
    outcomes = () if "all" in names else tuple(o for o in ItemOutcome if o.value in names)
    return JobSource(_job_id(job_id, text), _root(storage, text), outcomes, again == "true")


def _job_id(job_id: str, text: str, check: Callable[[str], str] = check_job_id) -> str:
    try:
        return check(job_id)
    except ConfigurationError as e:
        raise SourceError(str(e).removeprefix("job_id: "), source=text[:100]) from e


def _root(storage: str | None, text: str) -> str:
    if storage is None:
        raise SourceError("an earlier job can be named only where the storage is known", source=text[:100])
    return absolute_url(storage)
