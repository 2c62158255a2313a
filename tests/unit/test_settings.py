"""Settings from the environment: names, bounds, lists."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from orchestrator.cli.app import run
from orchestrator.settings import Settings


def test_each_setting_has_a_default_and_a_description():
    for name, field in Settings.model_fields.items():
        assert not field.is_required(), name
        assert field.description, name
        assert field.description.endswith((".", ")")), name


def test_settings_of_time_and_size_name_their_unit():
    for name, field in Settings.model_fields.items():
        if field.annotation in (float, float | None):
            assert name.endswith("_seconds")


def test_a_setting_is_read_from_its_variable(monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", "s3://bucket/jobs")
    monkeypatch.setenv("ORCHESTRATOR_POLL_SECONDS", "1.5")
    monkeypatch.setenv("ORCHESTRATOR_ALLOW_HTTP_SOURCES", "true")
    settings = Settings()
    assert (settings.storage, settings.poll_seconds, settings.allow_http_sources) == ("s3://bucket/jobs", 1.5, True)


@pytest.mark.parametrize("text", ["A,B", " A , B ", "A,,B,"])
def test_a_list_is_comma_separated(monkeypatch, text):
    monkeypatch.setenv("ORCHESTRATOR_MASKED_ENV", text)
    assert Settings().masked_env == ("A", "B")
    monkeypatch.setenv("ORCHESTRATOR_PYTHON_SOURCES", "")
    assert Settings().python_sources == ()


def test_variables_that_are_no_settings_do_no_harm(monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_FAVOURITE_COLOUR", "red")
    Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POLL_SECONDS", "0"),
        ("FENCE_SECONDS", "0"),
        ("FENCE_SECONDS", "3600"),
        ("MAX_WAITS", "-1"),
        ("SUBMIT_CONCURRENCY", "0"),
        ("PARAMETERS_MAX_BYTES", "1000000"),
        ("LEASE_SECONDS", "soon"),
        ("ITEM_GRACE_SECONDS", "nan"),
        ("CANCEL_DEADLINE_SECONDS", "inf"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(monkeypatch, name, value):
    monkeypatch.setenv(f"ORCHESTRATOR_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_a_parent_may_not_be_given_up_between_two_of_its_signs_of_life(monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_LEASE_SECONDS", "1")
    with pytest.raises(ValidationError, match="three times ORCHESTRATOR_BEAT_SECONDS"):
        Settings()


def test_the_command_line_says_which_settings_are_at_odds(monkeypatch, capsys):
    monkeypatch.setenv("ORCHESTRATOR_LEASE_SECONDS", "1")
    assert run(["status", "j"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ORCHESTRATOR_LEASE_SECONDS=1 must be")
