"""A server that asks for a password, and secrets planted everywhere in a real job on it."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from orchestrator.stack import Stack
from tests.e2e.conftest import Done, Program
from tests.integration.job_support import MARKS
from tests.security.conftest import AUTH, HERE
from tests.support import eventually

pytestmark = [*MARKS, pytest.mark.slow]

PLAIN = "tok-7f(3)*b_[x].y|z^$"
LINES = "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA1x\nqwertyuiopasdfgh\n-----END KEY-----"
FIRST, SECOND = "over-lap-one-two", "one-two-lapping"  # in a text they may share a part
NAMES = {"SEC_PLAIN": PLAIN, "SEC_LINES": LINES, "SEC_FIRST": FIRST, "SEC_SECOND": SECOND, "SEC_SHORT": "abc"}
OVERLAP = "over-lap-one-two-lapping"

ITEMS = [
    {"id": "plain", "name": "SEC_PLAIN", "before": "", "form": "SECRET"},
    {"id": "again", "name": "SEC_PLAIN", "before": "https://host/?q=", "form": "SECRET#x"},
    {"id": "lines", "name": "SEC_LINES", "before": "", "form": "key SECRET is wrong"},
    {"id": "overlap", "name": "SEC_PLAIN", "before": OVERLAP, "form": ""},
    {"id": "json", "name": "SEC_PLAIN", "before": json.dumps(LINES), "form": ""},
    {"id": "url", "name": "SEC_PLAIN", "before": quote(PLAIN, safe=""), "form": ""},
    {"id": "repr", "name": "SEC_PLAIN", "before": repr(LINES), "form": ""},
    {"id": "auth", "name": "SEC_PLAIN", "before": AUTH, "form": ""},
    {"id": "header", "name": "SEC_PLAIN", "before": base64.b64encode(AUTH.encode()).decode(), "form": ""},
    {"id": PLAIN, "name": "SEC_PLAIN", "before": "", "form": "the key is it"},
]  # fmt: skip

LEAKS = [
    PLAIN, quote(PLAIN, safe=""), *LINES.splitlines()[1:3], " ".join(LINES.split()), json.dumps(LINES)[1:-1],
    FIRST, SECOND, OVERLAP, "lapping", AUTH, AUTH.split(":")[1], base64.b64encode(AUTH.encode()).decode(),
]  # fmt: skip


def leaks_in(data: bytes) -> list[str]:
    """The secrets that stand in some bytes, markdown's backslashes aside."""
    text = data.decode(errors="replace")
    return [leak for leak in LEAKS if leak in text or leak in text.replace("\\", "")]


@pytest.fixture(scope="module")
def deployed(guarded: Stack, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """The flows of this folder on the guarded stack, deployed by Prefect's own command."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "prefect.yaml").write_text(
        json.dumps(
            {
                "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(HERE)}}],
                "deployments": [
                    {"name": "default", "entrypoint": f"flows.py:{name}", "work_pool": {
                        "name": "local", "job_variables": {"env": {**NAMES, "ORCHESTRATOR_MASKED_ENV": ",".join(NAMES)}}
                    }}
                    for name in ("tells", "sleeps")
                ],
            }
        )
    )  # fmt: skip
    (folder / "flows.py").write_text((HERE / "flows.py").read_text())
    guarded.deploy(folder / "prefect.yaml")
    return guarded


@pytest.fixture
def client(deployed: Stack, tmp_path: Path) -> Program:
    """The command line as a client that knows the password and the names of the secrets."""
    program = Program(deployed.environment, tmp_path)
    program.environment |= {
        "ORCHESTRATOR_MASKED_ENV": ",".join(NAMES), "ORCHESTRATOR_FENCE_SECONDS": "1",
        "ORCHESTRATOR_ITEM_GRACE_SECONDS": "2", **NAMES,
    }  # fmt: skip
    return program


@pytest.mark.timeout(600)
def test_everything_works_on_a_server_that_asks_for_a_password(client: Program, deployed: Stack) -> None:
    plan = client("plan", "--deployment", "sec-sleeps/default", "--items", "range:0:4", "--json")
    assert (plan.code, plan.json["items"]) == (0, 4), plan.err
    done = client("deploy", "--pool", deployed.pool, "--name", "guarded", "--json")
    assert done.code == 0, done.err
    doctor = client("doctor", "--deployment", "sec-sleeps/default")
    assert doctor.code == 0, doctor.out
    assert "SEC_SHORT" in doctor.out  # too short to be masked: said
    values = client.folder / "items.jsonl"
    values.write_text("0\n0\n0\n0\n")
    ran = client(
        "run", "--deployment", "sec-sleeps/default", "--items", str(values), "--batch-size", "2", "--job-id", "quick"
    )
    assert ran.code == 0, ran.err
    assert client("report", "quick", "--json").json["items"]["succeeded"] == 4
    # By the deployed parent, which Prefect's worker starts; and stopped half-way: children, waits, cancels.
    values.write_text("600\n" * 4)
    client.environment["ORCHESTRATOR_PARENT_DEPLOYMENT"] = "orchestrate/guarded"
    detached = client(
        "run", "--deployment", "sec-sleeps/default", "--items", str(values), "--batch-size", "1", "--job-id", "slow",
        "--max-in-flight", "2", "--detach", "--json",
    )  # fmt: skip
    assert detached.code == 0, detached.err
    wanted = {"flow_runs": {"tags": {"all_": ["job:slow"]}, "state": {"type": {"any_": ["RUNNING"]}}}}
    eventually(lambda: deployed.request("POST", "/flow_runs/filter", wanted), 120, "a running child")
    stopped = client("stop", "slow", "--reason", f"because of {PLAIN}", "--wait", "100", "--json")
    assert stopped.code == 0, stopped.err
    report = stopped.json["report"]
    assert (report["verdict"], report["items"]["succeeded"]) == ("cancelled", 0)
    assert PLAIN not in stopped.out + json.dumps(report)


@pytest.mark.parametrize("given", ["admin:wrong", None])
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--deployment", "sec-sleeps/default", "--items", "range:0:4"],
        ["plan", "--deployment", "sec-sleeps/default", "--items", "range:0:4"],
        ["deploy", "--pool", "local"],
        ["doctor"],
    ],
    ids=lambda arguments: str(arguments[0]) if isinstance(arguments, list) else None,
)
def test_wrong_credentials_end_with_one_clear_line(
    client: Program, deployed: Stack, arguments: list[str], given: str | None, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from orchestrator.cli.app import run

    with deployed.activated():
        monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(client.storage))
        monkeypatch.delenv("PREFECT_API_AUTH_STRING")
        if given:
            monkeypatch.setenv("PREFECT_API_AUTH_STRING", given)
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
        assert run(arguments) == 3
    said = capfd.readouterr()
    line = said.out if arguments == ["doctor"] else said.err
    assert "PREFECT_API_AUTH_STRING" in line
    assert "Traceback" not in said.err
    assert arguments == ["doctor"] or said.err.count("\n") == 1
    assert not list(client.storage.rglob("job.json"))


@pytest.fixture(scope="module")
def telling(deployed: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, Done]]:
    """A job whose items tell secrets, run by the deployed parent."""
    program = Program(deployed.environment, tmp_path_factory.mktemp("telling"))
    program.environment |= {"ORCHESTRATOR_MASKED_ENV": ",".join(NAMES), **NAMES}
    file = program.folder / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    done = program(
        "run", "--deployment", "sec-tells/default", "--items", str(file), "--key", "id", "--batch-size", "4",
        "--job-id", "telling", "--kill-switch", "failed > 100", deadline_seconds=200,
    )  # fmt: skip
    return program, done


def test_a_planted_secret_is_found_nowhere_that_we_write(telling: tuple[Program, Done], deployed: Stack) -> None:
    program, done = telling
    assert done.code == 1, done.err
    found: dict[str, list[str]] = {}
    for name, text in {"run's output": done.out, "run's progress": done.err}.items():
        found[name] = leaks_in(text.encode())
    for command in ("report", "status"):
        found[command] = leaks_in(program(command, "telling").out.encode())
    # The folder: items and keys are the user's data, there and in the ledger's `k`; everything else is ours.
    folder = program.storage / "telling"
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith(("part-", "index-")):
            continue
        data = path.read_bytes()
        if path.suffix == ".jsonl" and path.parts[-3] == "b":
            data = re.sub(rb'"k":"(?:[^"\\]|\\.)*"', b"", data)
        found[str(path.relative_to(folder))] = leaks_in(data)
    lines = (folder / "b/0/a0.jsonl").read_text().splitlines()
    errors = [json.loads(line).get("e", {}).get("text", "") for line in lines]
    assert any("********" in text for text in errors)
    # The server's database: everything that it keeps of runs, states, artifacts, events, logs.
    database = sqlite3.connect(f"file:{deployed.home / 'prefect.db'}?mode=ro", uri=True)
    try:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            if table in ("deployment", "deployment_version", "work_pool", "block_document"):
                continue  # job variables are the user's: what the deployment above was given
            rows = database.execute(f'select * from "{table}"').fetchall()
            found[f"table {table}"] = leaks_in(repr(rows).replace("\\\\", "\\").encode())
    finally:
        database.close()
    for log in (deployed.home / "logs").glob("*.log"):
        found[log.name] = leaks_in(log.read_bytes())
    assert {name: leaks for name, leaks in found.items() if leaks} == {}
    assert len(found) > 30


def test_pages_and_events_name_the_failures_all_the_same(telling: tuple[Program, Done], deployed: Stack) -> None:
    wanted = {"artifacts": {"type": {"any_": ["markdown"]}}}
    pages = [a["data"] for a in deployed.request("POST", "/artifacts/filter", wanted)]
    page = next(p for p in pages if "telling" in p)
    assert "ValueError" in page
    assert "cannot log in" in page


def test_what_the_program_is_given_wrongly_is_shown_without_secrets(client: Program) -> None:
    wrong = client("run", "--deployment", f"{PLAIN}", "--items", "range:0:1")
    assert wrong.code == 2
    assert "********" in wrong.err
    assert leaks_in(wrong.err.encode()) == []
