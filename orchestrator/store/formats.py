"""Reading item files: text, CSV, JSON, JSON Lines, Parquet, as rows with the line they stand on.

All of them stream: memory does not depend on the size of the file. What is malformed is refused with its line.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import errno
import gzip
import io
import json
import lzma
import os
import re
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from orchestrator.errors import SourceError, StorageError, install_extra
from orchestrator.store.jsonl import DECODER
from orchestrator.store.objects import file_system
from orchestrator.store.places import resolve
from orchestrator.store.primitives import is_local, redact, scheme_of

LINE_MAX_BYTES = 256 << 20  # a longer "line" is no line: somebody gave a binary file
_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_BOM = codecs.BOM_UTF8


class Row(NamedTuple):
    """One item as read. `line` is 1-based (the record's number where there are no lines), None when unknown; `key`
    is the label that the item has already, None when it has none."""

    line: int | None
    value: Any
    key: str | None = None


def read_text(file: IO[bytes], name: str) -> Iterator[Row]:
    """One item per line, without surrounding white space; blank lines are none."""
    for number, raw in _lines(file, name):
        text = _decoded(raw, name, number).strip()
        if text:
            yield Row(number, text)


def read_jsonl(file: IO[bytes], name: str) -> Iterator[Row]:
    """One JSON value per line; blank lines are none."""
    decode = DECODER.decode
    for number, raw in _lines(file, name):
        text = _decoded(raw, name, number).strip()
        if not text:
            continue
        try:
            value = decode(text)
        except (ValueError, RecursionError) as e:
            reason = f"is not JSON: {_json_reason(e)}"
            if number == 1 and text.startswith("["):
                reason += "; a file that is one JSON array must be named .json"
            raise SourceError(reason, source=name, line=number) from e
        yield Row(number, value)


def read_json(file: IO[bytes], name: str) -> Iterator[Row]:
    """The members of one JSON array, streamed."""
    return _JsonArray(file, name).rows()


def read_csv(file: IO[bytes], name: str) -> Iterator[Row]:
    """One mapping of header to text per row; empty rows are none."""
    rows = csv.reader((_decoded(raw, name, number) for number, raw in _lines(file, name)), strict=True)
    header: list[str] = []
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as e:
            raise SourceError(f"is not CSV: {e}", source=name, line=rows.line_num) from e
        if not row:
            continue
        if not header:
            header = row
            _check_header(header, name, rows.line_num)
        elif len(row) != len(header):
            raise SourceError(
                f"has {len(row)} values where the header has {len(header)}; a value with a comma needs quotes",
                source=name,
                line=rows.line_num,
            )
        else:
            yield Row(rows.line_num, dict(zip(header, row, strict=True)))
    if not header:
        raise SourceError("is empty; a CSV file has at least a header", source=name)


def read_parquet(file: IO[bytes], name: str) -> Iterator[Row]:
    """One mapping of column to value per row; `line` counts rows."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise SourceError(f"Parquet needs a package that is missing: {install_extra('parquet')}", source=name) from e
    with tempfile.TemporaryFile() as spool:
        if not file.seekable():
            shutil.copyfileobj(file, spool, _CHUNK)
            spool.seek(0)
            file = spool
        number = 0
        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=2048):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(number, value)
        except (pyarrow.ArrowException, OSError) as e:
            raise SourceError(f"is not Parquet that can be read: {_one_line(e)}", source=name) from e


READERS: Mapping[str, Callable[[IO[bytes], str], Iterator[Row]]] = {
    "text": read_text,
    "csv": read_csv,
    "json": read_json,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
}

_SUFFIXES = {
    ".txt": "text", ".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
_PACKED: Mapping[str, Callable[[IO[bytes]], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def format_of(url: str) -> str | None:
    """The format that a file's name says, compressed or not; None when it says none."""
    path = redact(url).lower()
    for suffix in _PACKED:
        path = path.removesuffix(suffix)
    return next((kind for suffix, kind in _SUFFIXES.items() if path.endswith(suffix)), None)


@contextmanager
def opened(url: str, name: str) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked when its name ends in .gz, .bz2 or .xz.

    Raises:
        SourceError: it is not there, is a folder, may not be read, or breaks off; also from within the block.
    """
    try:
        with _raw(url) as file:
            unpack = next((how for suffix, how in _PACKED.items() if redact(url).lower().endswith(suffix)), None)
            yield file if unpack is None else unpack(file)
    except SourceError:
        raise
    except FileNotFoundError as e:
        raise SourceError("there is no such file", source=name) from e
    except IsADirectoryError as e:
        raise SourceError(
            f"is a folder; to fan out over the files in it use glob:{name.rstrip('/')}/*", source=name
        ) from e
    except PermissionError as e:
        raise SourceError("may not be read (permission denied)", source=name) from e
    except StorageError as e:
        raise SourceError(str(e).removeprefix("storage: "), source=name) from e
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        raise SourceError(f"cannot be read: {_one_line(e)}", source=name) from e
    except Exception as e:
        if is_local(url):
            raise
        # Each client library of an object store has errors of its own.
        raise SourceError(f"cannot be read: {_one_line(e)}", source=name) from e


@contextmanager
def _raw(url: str) -> Iterator[IO[bytes]]:
    place = resolve(url)
    url = place.url
    if is_local(url):
        with open(url, "rb", buffering=_CHUNK, opener=plain_file) as file:
            yield file
    elif scheme_of(url) in ("http", "https"):
        try:
            answer = urllib.request.urlopen(url, timeout=60)
        except urllib.error.HTTPError as e:
            e.close()  # it is the answer as well
            raise OSError(f"the server answered {e.code} {e.reason}") from None
        with answer:
            yield answer
    else:
        fs = file_system(url, place.options)
        if fs.isdir(url) and not fs.isfile(url):
            raise IsADirectoryError(url)
        with fs.open(url, "rb") as remote:
            # fsspec's own readline is slow Python
            yield io.BufferedReader(remote, _CHUNK)


def plain_file(path: str, flags: int) -> int:
    """Opens a file, as `open(..., opener=)` wants it; what is none, a pipe for instance, is not waited for.

    Raises:
        OSError: it is a pipe, a device or a socket.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise OSError("it is a pipe or a device; give its content as JSON Lines on standard input: -")
    return descriptor


class _JsonArray:
    """Decodes an array member by member from a window of its text."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._line = "", 0, 1
        self._more_to_come = True

    def rows(self) -> Iterator[Row]:
        if self._next_character() == "":
            raise SourceError("is empty; a JSON file of items is an array", source=self._name)
        if self._text[self._at] != "[":
            raise self._error("is not a JSON array; for one item per line name the file .jsonl")
        self._move(self._at + 1)
        if self._next_character() == "]":
            self._move(self._at + 1)
        else:
            yield from self._members()
        if self._next_character() != "":
            raise self._error("goes on after the end of the array; for one item per line name the file .jsonl")

    def _members(self) -> Iterator[Row]:
        while True:
            self._next_character()
            line = self._line
            yield Row(line, self._value())
            mark = self._next_character()
            if mark not in (",", "]"):
                raise self._error("is not JSON: ',' or ']' is missing" if mark else "ends before the array does")
            self._move(self._at + 1)
            if mark == "]":
                return

    def _value(self) -> Any:
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as e:
                # The value may go on beyond the window; the window doubles, so that long values stay cheap.
                if isinstance(e, json.JSONDecodeError) and self._read_more():
                    continue
                reason = "ends before the array does" if self._at >= len(self._text) else _json_reason(e)
                raise self._error(f"is not JSON: {reason}") from e
            if end == len(self._text) and self._read_more():
                continue  # a number may go on
            self._move(end)
            return value

    def _next_character(self) -> str:
        """The next character that is no white space, where the window then stands; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._move(match.end() if match else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _read_more(self) -> bool:
        if not self._more_to_come:
            return False
        data = self._file.read(max(_CHUNK, len(self._text) - self._at))
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as e:
            raise self._error("is not UTF-8 text; save the file as UTF-8") from e
        self._more_to_come = bool(data)
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(data)

    def _error(self, reason: str) -> SourceError:
        return SourceError(reason, source=self._name, line=self._line)


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    while raw := file.readline(LINE_MAX_BYTES):
        number += 1
        if len(raw) == LINE_MAX_BYTES and not raw.endswith(b"\n"):
            raise SourceError(f"is longer than {LINE_MAX_BYTES:,} bytes", source=name, line=number)
        yield number, raw.removeprefix(_BOM) if number == 1 else raw


def _decoded(raw: bytes, name: str, line: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        raise SourceError("is not UTF-8 text; save the file as UTF-8", source=name, line=line) from e


def _check_header(header: list[str], name: str, line: int) -> None:
    seen: set[str] = set()
    for number, column in enumerate(header, 1):
        if not column.strip():
            raise SourceError(f"column {number} of the header has no name", source=name, line=line)
        if column in seen:
            raise SourceError(f"the header names {column[:100]!r} twice", source=name, line=line)
        seen.add(column)


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
