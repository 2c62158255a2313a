"""`control-job`: what the form's fields do to a job's folder, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConfigurationError
from orchestrator.flows.control import FORM, _carry_out, control_job_flow
from orchestrator.store import JobFolder, job_folder_url
from orchestrator.testing import simulate


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    """A job whose parent is not done with it, and gives no sign of life."""
    root = str(tmp_path / "jobs")
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", root)
    monkeypatch.setenv("ORCHESTRATOR_BEAT_SECONDS", "0.1")
    monkeypatch.setenv("ORCHESTRATOR_LEASE_SECONDS", "5")
    simulate(lambda item: item, range(4), job_id="first", storage=root)
    found = JobFolder(job_folder_url(root, "first"))
    found.store.delete("report.json")
    return found


def tell(action: Any, *, job: Any = "first", max_in_flight: Any = None, **fields: Any) -> str:
    texts = {"kill_switch": "", "reason": "", "storage": "", **fields}
    return _carry_out(
        job, action, max_in_flight, texts["kill_switch"], texts["reason"], texts["storage"], "run moss-owl"
    )


def test_each_action_does_what_it_says(folder: JobFolder):
    assert "max_in_flight changed from 8 to 3 by run moss-owl at " in tell("scale", max_in_flight=3)
    assert "kill switch changed to failed >= 2 by run moss-owl" in tell("kill switch", kill_switch="failed >= 2")
    assert "kill switch taken away by run moss-owl" in tell("kill switch", kill_switch="none")
    assert "paused by run moss-owl at " in (said := tell("pause", reason="lunch"))
    assert "(lunch)" in said
    assert "it is paused already" in tell("pause")
    assert len(folder.read_controls()) == 4
    assert "stopping, child runs in flight may finish" in tell("stop: drain", reason="enough")
    assert "stopping, child runs in flight are cancelled" in tell("stop: cancel")
    stop = folder.read_stop()
    assert stop is not None
    assert (stop.mode, stop.who, stop.reason) == ("cancel", "run moss-owl", "stopped by run moss-owl")


def test_a_paused_job_whose_parent_died_is_told_what_goes_on_with_it(folder: JobFolder):
    tell("pause")
    said = tell("resume")
    assert "went on by run moss-owl" in said
    assert "gives no sign of life: start orchestrate with the source `Resume a job`" in said
    with pytest.raises(ConfigurationError, match="is not paused; its parent run gives no sign of life"):
        tell("resume")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"action": "halt"}, "action: 'halt' is none of "),
        ({"action": "stop"}, "stop: "),
        ({"action": None}, "action: None is none of "),
        ({"action": "scale"}, "max_in_flight: is needed"),
        ({"action": "scale", "max_in_flight": 0}, "max_in_flight: must be 1 to 1000"),
        ({"action": "scale", "max_in_flight": "3"}, "max_in_flight: must be a whole number"),
        ({"action": "scale", "max_in_flight": True}, "max_in_flight: must be a whole number"),
        ({"action": "pause", "max_in_flight": 3}, "max_in_flight: goes with the action `scale`"),
        ({"action": "kill switch"}, "kill_switch: is needed"),
        ({"action": "kill switch", "kill_switch": "failed >"}, "kill_switch: "),
        ({"action": "pause", "kill_switch": "failed > 1"}, "kill_switch: goes with"),
        ({"action": "pause", "job": ""}, "job: name the job"),
        ({"action": "pause", "job": 7}, "job: must be a text"),
        ({"action": "pause", "job": "../first"}, "job_id: "),
        ({"action": "pause", "job": "other"}, "job_id: there is no job"),
        ({"action": "pause", "storage": "s3://me:secret@bucket"}, "storage: "),
    ],
    ids=str,
)
def test_bad_input_is_refused_and_writes_nothing(folder: JobFolder, fields: dict[str, Any], said: str):
    with pytest.raises(ConfigurationError) as refused:
        tell(fields.pop("action"), **fields)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)
    assert folder.read_controls() == []
    assert folder.read_stop() is None


def test_a_job_that_is_over_takes_nothing_more(folder: JobFolder):
    folder.write_report({"verdict": "completed"})
    for action, more in (("pause", {}), ("resume", {}), ("stop: cancel", {}), ("scale", {"max_in_flight": 2})):
        with pytest.raises(ConfigurationError, match="is over"):
            tell(action, **more)


def test_the_form_is_plain_fields_with_descriptions():
    schema = control_job_flow.parameters.model_dump()
    assert tuple(schema["properties"]) == FORM
    assert schema["required"] == ["job", "action"]
    for field in schema["properties"].values():
        assert field["description"]
        assert "anyOf" not in field
