"""Wrong requests at the command line: one line with the remedy, the right exit code, nothing created."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli.app import run
from orchestrator.stack import Stack
from orchestrator.stack.containers import docker_template
from tests.e2e.conftest import Program, write_items

GOOD = [{"n": n} for n in range(4)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with item files good and bad, the current one; jobs would lie in `jobs`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(tmp_path / "jobs"))
    write_items(tmp_path / "good.jsonl", GOOD)
    (tmp_path / "bad.jsonl").write_text('{"n": 0}\n{"n": \n')
    (tmp_path / "template.jsonl").write_text('{"n": {"__prefect_kind": "jinja", "template": "{{ 1 }}"}}\n')
    (tmp_path / "good.weird").write_text("1\n")
    (tmp_path / "long.jsonl").write_text(json.dumps("x" * 500) + "\n")
    (tmp_path / "file").write_text("not a folder")
    return tmp_path


REFUSED = [
    pytest.param([], "deployment", id="no deployment"),
    pytest.param(["--deployment", "it-work/default"], "items", id="no items"),
    pytest.param(
        ["--deployment", "it-work/defaul", "--items", "good.jsonl"], "did you mean 'it-work/default'", id="near"
    ),
    pytest.param(["--deployment", "it-work", "--items", "good.jsonl"], "flow-name/deployment-name", id="half a name"),
    pytest.param(["WORK", "--items", "nowhere.jsonl"], "nowhere.jsonl", id="no such file"),
    pytest.param(["WORK", "--items", "bad.jsonl"], "bad.jsonl, line 2", id="malformed line"),
    pytest.param(["WORK", "--items", "good.weird"], "good.weird", id="unknown suffix"),
    pytest.param(["WORK", "--items", "range:1"], "range", id="half a range"),
    pytest.param(["WORK", "--items", "job:nothing?outcome=failed"], "nothing", id="no such job"),
    pytest.param(["WORK", "--items", "python:no_such_module_here:f"], "no_such_module_here", id="no such module"),
    pytest.param(["WORK", "--items", "good.jsonl", "--key", "id"], "id", id="field that is not there"),
    pytest.param(["WORK", "--items", "long.jsonl", "--max-bytes", "100"], "max_bytes", id="item above max_bytes"),
    pytest.param(["WORK", "--items", "good.jsonl", "--batch-size", "0"], "batch_size", id="batch size 0"),
    pytest.param(["WORK", "--items", "good.jsonl", "--max-in-flight", "1001"], "max_in_flight", id="window too wide"),
    pytest.param(["WORK", "--items", "good.jsonl", "--max-weight", "3"], "weight", id="max_weight without weight"),
    pytest.param(["WORK", "--items", "good.jsonl", "--kill-switch", "faild > 3"], "^", id="misspelt name"),
    pytest.param(["WORK", "--items", "good.jsonl", "--kill-switch", "failed >"], "^", id="half an expression"),
    pytest.param(["WORK", "--items", "good.jsonl", "--enough-when", "__import__('os')"], "^", id="code"),
    pytest.param(["WORK", "--items", "good.jsonl", "--param", "nope=1"], "nope", id="unknown parameter"),
    pytest.param(["WORK", "--items", "good.jsonl", "--param", "trace"], "NAME=VALUE", id="half a parameter"),
    pytest.param(["WORK", "--items", "good.jsonl", "--param", "trace=[1]"], "trace", id="parameter of a wrong type"),
    pytest.param(["WORK", "--items", "good.jsonl", "--pass-items-as", "many:x"], "pass_items_as", id="unknown passing"),
    pytest.param(
        ["WORK", "--items", "template.jsonl", "--pass-items-as", "list:items"], "__prefect_kind", id="template"
    ),
    pytest.param(["WORK", "--items", "good.jsonl", "--job-id", "../up"], "job_id", id="job id with a path"),
    pytest.param(["WORK", "--items", "good.jsonl", "--storage", "file/under"], "storage", id="storage under a file"),
    pytest.param(["WORK", "--items", "good.jsonl", "--storage", "s3://me:pw@bucket/x"], "storage", id="user info"),
    pytest.param(["WORK", "--items", "good.jsonl", "--on-trip", "explode"], "--on-trip", id="unknown choice"),
    pytest.param(["WORK", "--items", "good.jsonl", "--batch-size", "many"], "--batch-size", id="no number"),
    pytest.param(["WORK", "--items", "good.jsonl", "--detach", "--job-id", "a b"], "job_id", id="detached job id"),
]


CASES = [
    pytest.param(command, *case.values, id=f"{command}: {case.id}")
    for case in REFUSED
    for command in ("run", "plan")
    if command == "run" or "--detach" not in case.values[0]
]


@pytest.mark.parametrize(("command", "flags", "said"), CASES)
def test_a_wrong_request_is_refused_before_anything_is_created(
    command: str, flags: list[str], said: str, place: Path, work: str, stack: Stack, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [part for f in flags for part in (["--deployment", work] if f == "WORK" else [f])]
    if "--param" not in flags and work in flags:
        flags += ["--param", f"trace={place}"]
    before = stack.request("POST", "/flow_runs/count", {})
    capfd.readouterr()

    assert run([command, *flags]) == 2

    out, err = capfd.readouterr()
    assert out == ""
    lines = err.rstrip("\n").splitlines()
    assert lines[0].startswith("error: ")
    assert said in err
    assert len(lines) == (3 if "^" in said else 1), err  # an expression is shown with a caret under the place
    assert ":pw" not in err
    assert stack.request("POST", "/flow_runs/count", {}) == before
    assert not (place / "jobs").exists() or list((place / "jobs").rglob("job.json")) == []


def test_an_empty_collection_is_a_completed_job(
    place: Path, work: str, stack: Stack, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "empty.jsonl").write_text("")
    flags = ["--deployment", work, "--items", "empty.jsonl", "--param", f"trace={place}", "--json"]
    assert run(["run", *flags]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["verdict"], report["items"]["total"], report["batches"]["total"]) == ("completed", 0, 0)


def test_a_job_id_in_use_with_another_request_shows_the_difference(
    place: Path, work: str, stack: Stack, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--deployment", work, "--items", "good.jsonl", "--param", f"trace={place}", "--job-id", "mine"]
    assert run(["run", *flags]) == 0
    capfd.readouterr()
    assert run(["run", *flags, "--batch-size", "3"]) == 2
    assert "batch_size: 100 there, 3 here" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--deployment", "a/b", "--items", "range:0:3"],
        ["plan", "--deployment", "a/b", "--items", "range:0:3"],
        ["run", "--deployment", "a/b", "--items", "range:0:3", "--detach"],
        ["deploy", "--pool", "p"],
        ["doctor"],
    ],
)
def test_a_server_that_is_away_ends_with_3_and_says_where_it_was_looked_for(
    arguments: list[str], lonely: Program
) -> None:
    lonely.environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    done = lonely(*arguments)
    assert done.code == 3
    said = done.out if arguments == ["doctor"] else done.err
    assert "http://127.0.0.1:9/api" in said
    assert "Traceback" not in done.err
    assert not lonely.storage.exists() or list(lonely.storage.rglob("job.json")) == []


def test_without_any_server_configured_the_remedy_is_named(lonely: Program) -> None:
    done = lonely("run", "--deployment", "a/b", "--items", "range:0:3")
    assert done.code == 3
    assert "PREFECT_API_URL" in done.err
    assert done.err.count("\n") == 1


def test_deploy_names_the_pools_there_are(stack: Stack, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["deploy", "--pool", "nowhere"]) == 2
    err = capfd.readouterr().err
    assert "test-pool" in err
    assert "--create-pool" in err
    assert run(["deploy", "--pool", "test-pool", "--image", "x"]) == 2
    assert "image" in capfd.readouterr().err


def test_deploy_wants_a_docker_pool_to_mount_a_local_folder(
    stack: Stack, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new = ["--pool", "mounts-nothing", "--create-pool", "--image", "mine:1"]
    assert run(["deploy", *new, "--storage", str(tmp_path), "--job-variable", "volumes=[]"]) == 2
    assert f'job variable volumes=["{tmp_path}:{tmp_path}"]' in capfd.readouterr().err
    names = [pool["name"] for pool in stack.request("POST", "/work_pools/filter", {})]
    assert "mounts-nothing" not in names, "the pool was created, and then the request refused"


def test_every_command_says_in_the_same_words_that_a_folder_cannot_be_seen(
    stack: Stack, place: Path, work: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = {"name": "mounts-nothing", "type": "docker", "base_job_template": docker_template()}
    stack.request("POST", "/work_pools/", pool)
    flow = stack.request("POST", "/flows/", {"name": "cannot-see"})
    schema = {"properties": {"batch": {}}, "definitions": {"BatchReference": {}}}
    deployment = {
        "name": "it",
        "flow_id": flow["id"],
        "work_pool_name": "mounts-nothing",
        "parameter_openapi_schema": schema,
    }
    deployed = stack.request("POST", "/deployments/", deployment)
    jobs = place / "jobs"
    said = (
        f"{jobs} is a folder of this machine, which {{}} on the docker pool 'mounts-nothing' cannot see; give a URL "
        f'that both sides reach, e.g. s3://bucket/jobs, or mount it there: job variable volumes=["{jobs}:{jobs}"]'
    )
    children, parent = said.format("child runs"), said.format("the parent")
    at = ["--deployment", "cannot-see/it", "--items", "good.jsonl"]
    try:
        for command, words in (
            (["run", *at], children),
            (["plan", *at], children),
            (["run", "--detach", "--deployment", work, "--items", "good.jsonl"], parent),
            (["deploy", "--pool", "mounts-nothing", "--storage", str(jobs), "--image", "mine:1"], parent),
            (["doctor", "--deployment", "cannot-see/it"], children),
        ):
            if "--detach" in command:
                monkeypatch.setenv("ORCHESTRATOR_PARENT_DEPLOYMENT", "cannot-see/it")
            ended = run(command)
            shown = capfd.readouterr()
            assert words in (shown.out if command[0] == "doctor" else shown.err), command
            assert ended == (1 if command[0] == "doctor" else 2), command
            monkeypatch.delenv("ORCHESTRATOR_PARENT_DEPLOYMENT", raising=False)
        assert list(jobs.rglob("job.json")) == []
    finally:
        stack.request("DELETE", f"/deployments/{deployed['id']}")
        stack.request("DELETE", "/work_pools/mounts-nothing")


def test_up_with_containers_wants_an_engine(lonely: Program, tmp_path: Path) -> None:
    lonely.environment["DOCKER_HOST"] = f"unix://{tmp_path}/nobody.sock"
    done = lonely("up", "--docker", "--home", str(tmp_path / "stack"))
    assert done.code == 2
    assert f"no Docker engine answers at unix://{tmp_path}/nobody.sock" in done.err
    assert "export DOCKER_HOST=" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "stack").exists()
    assert "--docker" in lonely("up", "--image", "mine:1").err


def test_doctor_finds_what_is_wrong_and_says_what_to_do(
    place: Path, work: str, stack: Stack, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["doctor", "--deployment", work, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["ok"] is True

    stack.create_pool("paused-pool", limit=1)
    stack.request("PATCH", "/work_pools/paused-pool", {"is_paused": True})
    monkeypatch.setenv("PREFECT_WORKER_ENABLE_CANCELLATION", "true")
    try:
        assert run(["doctor", "--max-in-flight", "40"]) == 1
    finally:
        stack.request("DELETE", "/work_pools/paused-pool")
    out = capfd.readouterr().out
    assert "prefect work-pool resume paused-pool" in out
    assert "PREFECT_WORKER_ENABLE_CANCELLATION" in out
    assert "SQLite" in out
