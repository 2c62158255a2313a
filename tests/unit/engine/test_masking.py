"""What is secret appears in nothing that passed the mask, whatever form it takes."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)

from orchestrator.engine.masking import MASK, Masker

SETTINGS = {
    PREFECT_API_AUTH_STRING: "admin:open sesame",
    PREFECT_API_KEY: "pnu_abcdef",
    PREFECT_CLIENT_CUSTOM_HEADERS: {"Authorization": "Bearer gate-keeper", "X-Tenant": "tenant-seven"},
    PREFECT_SERVER_DATABASE_CONNECTION_URL: "postgresql+asyncpg://me:p%40ss-word@db.example/prefect",
}


@pytest.fixture
def masker(monkeypatch: pytest.MonkeyPatch) -> Masker:
    monkeypatch.setenv("WAREHOUSE_TOKEN", 'quo"ted\\token')
    monkeypatch.setenv("SHORT", "abc")
    with temporary_settings(SETTINGS):
        return Masker(["WAREHOUSE_TOKEN", "SHORT", "NOT_SET"])


@pytest.mark.parametrize(
    "text",
    [
        "authorised as admin:open sesame here",
        "the password is open sesame",
        "Authorization: Basic " + base64.b64encode(b"admin:open sesame").decode(),
        "key pnu_abcdef",
        "refused: Bearer gate-keeper",
        "the token gate-keeper has expired",
        "postgresql+asyncpg://me:p%40ss-word@db.example/prefect",
        "password p@ss-word",
        'token quo"ted\\token',
        json.dumps({"token": 'quo"ted\\token'}),
        "https://host/?token=quo%22ted%5Ctoken",
        "https://user:other-secret@host/path",
    ],
)
def test_no_form_of_a_secret_is_left(masker: Masker, text: str) -> None:
    masked = masker(text)
    assert MASK in masked
    for secret in (
        "open sesame",
        "pnu_abcdef",
        "gate-keeper",
        "p%40ss",
        "p@ss",
        "ted\\token",
        "ted%5C",
        "other-secret",
        "b3BlbiB",
    ):
        assert secret not in masked


@pytest.mark.parametrize(
    "text", ["", "abc", "db.example", "https://host/a@b", "mail me@host", "s3://bucket/key", "tenant-seven"]
)
def test_what_is_not_secret_stays(masker: Masker, text: str) -> None:
    assert masker(text) == text


def test_values_are_masked_at_every_depth(masker: Masker) -> None:
    assert masker.value({"pnu_abcdef": [1, None, ("x pnu_abcdef", True)]}) == {MASK: [1, None, [f"x {MASK}", True]]}


@given(st.text())
def test_without_secrets_only_user_info_of_urls_changes(text: str) -> None:
    if "://" not in text:
        assert Masker()(text) == text
