"""The items of a job that did not succeed, with their errors, as a file that is itself a source of items."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import secrets
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from orchestrator.core.model import Item, ItemOutcome
from orchestrator.errors import ConfigurationError, OrchestratorError
from orchestrator.store.folder import JobFolder
from orchestrator.store.jsonl import encode_json
from orchestrator.store.objects import file_system
from orchestrator.store.places import resolve
from orchestrator.store.primitives import absolute_url, is_local, redact
from orchestrator.store.records import OutcomeRecord

_PACKED: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def write_dead_letter(folder: JobFolder, place: str, only: Collection[ItemOutcome], limit: int | None = None) -> int:
    """Write those items, one JSON object per line, in input order and in constant memory; how many there were.

    Args:
        place: A path or fsspec URL that ends in .jsonl (.gz, .bz2, .xz too), or `-` for standard output. A local file
            is there whole or not at all.
        limit: At most so many.

    Raises:
        ConfigurationError: the job is not over, or the place cannot be written.
    """
    if folder.read_report() is None:
        raise ConfigurationError(f"job {folder.read_job().job_id!r} is not over: what it leaves is not known yet")
    written = 0
    with _opened(place) as file:
        for item, record in folder.items(only):
            if limit is not None and written >= limit:
                break
            file.write(encode_json(dead_letter(item, record), parsed=True) + b"\n")
            written += 1
    return written


def dead_letter(item: Item, record: OutcomeRecord) -> dict[str, Any]:
    """One line: `--select item --key key` make the item of it again."""
    error = {"type": record.error_type, "text": record.error_text or ""} if record.error_type is not None else None
    return {
        "item": item.value,
        "key": item.key,
        "index": item.index,
        "outcome": record.outcome.value,
        "error": error,
        "tries": record.tries,
    }


@contextmanager
def _opened(place: str) -> Iterator[IO[bytes]]:
    if place == "-":
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    url = absolute_url(place, field="dead_letter")
    plain, pack = url, None
    for suffix, opener in _PACKED.items():
        if url.lower().endswith(suffix):
            plain, pack = url[: -len(suffix)], opener
    if not plain.lower().endswith((".jsonl", ".ndjson")):
        raise ConfigurationError(
            f"{redact(place)!r} must end in .jsonl (also .jsonl.gz), which says what is in it", field="dead_letter"
        )
    try:
        to = resolve(url)
        if is_local(to.url):
            yield from _local(to.url, pack)
        else:
            with file_system(to.url, to.options).open(to.url, "wb") as remote:
                yield from _packed(remote, pack)
    except (OrchestratorError, BrokenPipeError):
        raise
    except Exception as e:
        text = " ".join(str(e).split())[:300] or type(e).__name__
        raise ConfigurationError(f"{redact(place)!r} cannot be written: {text}", field="dead_letter") from e


def _local(path: str, pack: Callable[..., Any] | None) -> Iterator[IO[bytes]]:
    temporary = f"{path}.{secrets.token_hex(4)}.part"
    try:
        with open(temporary, "xb") as file:
            yield from _packed(file, pack)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _packed(file: Any, pack: Callable[..., Any] | None) -> Iterator[IO[bytes]]:
    if pack is None:
        yield file
    else:
        with pack(file, "wb") as packed:
            yield packed
