"""Prefect blocks that name storage: what `block:TYPE/NAME` means, read from Prefect by whoever opens it.

A block is read as data and never as code: nobody's block class is imported, so that a child run needs no package for it
but fsspec's own for that kind of storage. What it holds of credentials stays in this process, and is masked from here
on. Prefect is imported when a block is first asked for: commands that work on a folder alone need not wait for it.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.engine.masking import Masker, keep_secret
from orchestrator.errors import EngineUnavailableError, OrchestratorError, StorageError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import BlockDocument

KEEP_SECONDS = 60.0
"""How long a block is not read again: a storage of a thousand jobs is opened a thousand times."""
REMOTE, LOCAL, S3 = "remote-file-system", "local-file-system", "s3-bucket"
_SECRET = ("key", "secret", "token", "password", "credential", "connection_string", "sas", "account_info")

Found = tuple[str, Mapping[str, Any]]
_kept: dict[tuple[str, str], tuple[float, Found]] = {}
_lock = threading.Lock()


def place_of(block: str) -> Found:
    """Where a block says that something lies: its URL or path, and what fsspec's file system there is to be given.

    Args:
        block: Its type's slug and its name: `remote-file-system/jobs`.

    Raises:
        StorageError: there is no such block, or it names no storage that can hold jobs.
        EngineUnavailableError: Prefect cannot be asked.
    """
    from prefect.settings import PREFECT_API_URL

    api = str(PREFECT_API_URL.value() or "")
    if not api:
        raise EngineUnavailableError(
            f"block {block!r} cannot be read: no Prefect server is configured; set PREFECT_API_URL or choose a profile"
        )
    with _lock:
        read_at, found = _kept.get((api, block), (float("-inf"), None))
    if found is None or time.monotonic() - read_at > KEEP_SECONDS:
        found = _read(block)  # without the lock: whoever waits for a silent Prefect keeps nobody else from asking
        with _lock:
            keep_secret(_secrets(found[1]))
            _kept[(api, block)] = (time.monotonic(), found)
    return found


def forget_blocks() -> None:
    """Read every block anew from here on."""
    with _lock:
        _kept.clear()


def _read(block: str) -> Found:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from orchestrator.engine.translate import api_address, translate

    slug, _, name = block.partition("/")
    masker = Masker()
    try:
        with get_client(sync_client=True) as client:
            try:
                document = client.read_block_document_by_name(name, slug)
            except ObjectNotFound:
                raise StorageError(
                    f"there is no block {block!r} at {api_address(masker)}{_near(client, slug, name)}"
                ) from None
    except OrchestratorError:
        raise
    except Exception as e:
        raise translate(e, f"read the block {block!r}", masker) from e
    return _found(block, document)


def _near(client: SyncPrefectClient, slug: str, name: str) -> str:
    """What there is instead, and how to make one."""
    try:
        known = [str(document.name) for document in client.read_block_documents_by_type(slug, include_secrets=False)]
    except Exception:  # noqa: BLE001 - there is no such type, or it cannot be asked: the hint is left out
        known = []
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5) or sorted(known)[:3]
    if near:
        return f"; did you mean {' or '.join(f'block:{slug}/{found}' for found in near)}?"
    return "; create it on the UI's Blocks page or from Python (`prefect block ls` lists what there is)"


def _found(block: str, document: BlockDocument) -> Found:
    slug = block.partition("/")[0]
    if (read := _READERS.get(slug)) is None:
        raise StorageError(f"block {block!r} cannot hold jobs; blocks of these types can: {', '.join(_READERS)}")
    url, options = read(document.data)
    if not url:
        raise StorageError(f"block {block!r} does not say where: give it a basepath")
    return url, options


def _remote(data: Mapping[str, Any]) -> Found:
    # Source: prefect filesystems.py `RemoteFileSystem.filesystem`, 3.8.8.
    return str(data.get("basepath") or ""), dict(data.get("settings") or {})


def _local(data: Mapping[str, Any]) -> Found:
    return str(data.get("basepath") or ""), {}


def _s3(data: Mapping[str, Any]) -> Found:
    """A bucket of prefect-aws, with the credentials block inside it (AWS or MinIO).

    Source: prefect-aws s3.py `S3Bucket`, credentials.py, client_parameters.py.
    """
    bucket, folder = str(data.get("bucket_name") or ""), str(data.get("bucket_folder") or "").strip("/")
    has = data.get("credentials") or {}
    more = has.get("aws_client_parameters") or {}
    options = {
        "key": has.get("aws_access_key_id") or has.get("minio_root_user"),
        "secret": has.get("aws_secret_access_key") or has.get("minio_root_password"),
        "token": has.get("aws_session_token"),
        "profile": has.get("profile_name"),
        "endpoint_url": more.get("endpoint_url"),
    }
    client = {"region_name": has.get("region_name"), "verify": more.get("verify_cert_path") or more.get("verify")}
    if client["verify"] is True:
        client["verify"] = None  # that is the default, and the environment's own bundle would not count beside it
    given: dict[str, Any] = {name: value for name, value in options.items() if value}
    given["client_kwargs"] = {name: value for name, value in client.items() if value is not None}
    url = f"s3://{bucket}" + (f"/{folder}" if folder else "")
    return url if bucket else "", given


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Found]] = {REMOTE: _remote, LOCAL: _local, S3: _s3}


def _secrets(value: Any, secret: bool = False) -> Iterator[str]:
    """The texts under names that speak of secrets."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _secrets(inner, secret or any(word in str(name).lower() for word in _SECRET))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _secrets(inner, secret)
    elif secret and isinstance(value, str):
        yield value
