"""What blocks say of storage, from their data as Prefect's API gives it; loading them is tested on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import BlockDocument

from orchestrator.engine import blocks, masking
from orchestrator.engine.masking import MASK, Masker, keep_secret, mask
from orchestrator.errors import EngineUnavailableError, StorageError


@pytest.fixture(autouse=True)
def _nothing_learnt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(masking, "_learnt", frozenset())
    yield
    blocks.forget_blocks()


def document(data: dict[str, object]) -> BlockDocument:
    return BlockDocument(name="jobs", data=data, block_schema_id=uuid4(), block_type_id=uuid4())


def test_a_remote_file_system_is_its_basepath_and_settings() -> None:
    data = {"basepath": "s3://bucket/jobs", "settings": {"key": "k", "client_kwargs": {"endpoint_url": "http://h"}}}
    assert blocks._found("remote-file-system/jobs", document(data)) == ("s3://bucket/jobs", data["settings"])
    assert blocks._found("local-file-system/jobs", document({"basepath": "~/jobs"})) == ("~/jobs", {})


def test_a_bucket_of_prefect_aws_is_read_without_its_package() -> None:
    credentials = {
        "aws_access_key_id": "AKIA", "aws_secret_access_key": "very-secret", "region_name": "eu-central-1",
        "aws_client_parameters": {"endpoint_url": "http://minio:9000", "verify": True, "use_ssl": True},
    }  # fmt: skip
    data = {"bucket_name": "b", "bucket_folder": "/jobs/", "credentials": credentials}
    url, options = blocks._found("s3-bucket/jobs", document(data))
    assert url == "s3://b/jobs"
    assert options == {
        "key": "AKIA", "secret": "very-secret", "endpoint_url": "http://minio:9000",
        "client_kwargs": {"region_name": "eu-central-1"},
    }  # fmt: skip
    minio = {"minio_root_user": "root", "minio_root_password": "pass-word"}
    url, options = blocks._found("s3-bucket/jobs", document({"bucket_name": "b", "credentials": minio}))
    assert (url, options) == ("s3://b", {"key": "root", "secret": "pass-word", "client_kwargs": {}})


@pytest.mark.parametrize(
    ("block", "data", "said"),
    [
        ("secret/jobs", {"value": "x"}, "cannot hold jobs; blocks of these types can: remote-file-system"),
        ("local-file-system/jobs", {"basepath": None}, "does not say where: give it a basepath"),
        ("s3-bucket/jobs", {"credentials": {}}, "does not say where"),
    ],
)
def test_a_block_that_holds_no_jobs_is_refused(block: str, data: dict[str, object], said: str) -> None:
    with pytest.raises(StorageError, match=said):
        blocks._found(block, document(data))


def test_without_a_server_there_are_no_blocks() -> None:
    with pytest.raises(EngineUnavailableError, match="no Prefect server is configured"):
        blocks.place_of("remote-file-system/jobs")


def test_the_credentials_in_a_block_are_masked_from_then_on_by_maskers_made_before() -> None:
    before = Masker()
    settings = {
        "key": "AKIAJOBS", "secret": "very-secret", "token": {"private_key": "-----BEGIN", "type": "service"},
        "client_kwargs": {"endpoint_url": "http://host", "region_name": "eu-central-1"}, "connection_string": "Acc=1;",
    }  # fmt: skip
    found = list(blocks._secrets(settings))
    assert set(found) == {"AKIAJOBS", "very-secret", "-----BEGIN", "service", "Acc=1;"}
    assert mask("very-secret") == "very-secret"
    keep_secret(found)
    for masker in (before, mask):
        assert (
            masker("refused: AKIAJOBS with very-secret at http://host") == f"refused: {MASK} with {MASK} at http://host"
        )
