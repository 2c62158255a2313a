"""Jobs from the command line, as a subprocess against a real server and worker."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from orchestrator.stack import Stack
from orchestrator.stack.own import OWN
from tests.e2e.conftest import Program, write_items
from tests.support import eventually


def items(count: int, **what: object) -> list[dict[str, object]]:
    return [{"n": n, **what} for n in range(count)]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    folder = tmp_path / "trace"
    folder.mkdir()
    return folder


def started(trace: Path) -> int:
    path = trace / "items.jsonl"
    return sum('"start"' in line for line in path.read_text().splitlines()) if path.exists() else 0


def test_plan_says_what_run_would_do_and_creates_nothing(program: Program, work: str, session_stack: Stack) -> None:
    file = write_items(program.folder / "items.jsonl", items(10))
    before = session_stack.request("POST", "/flow_runs/count", {})

    flags = ["--deployment", work, "--items", str(file), "--batch-size", "4", "--param", "trace=x", "--json"]
    done = program("plan", *flags)

    assert done.code == 0, done.err
    plan = done.json
    assert (plan["items"], plan["batches"], plan["smallest"], plan["largest"]) == (10, 3, 2, 4)
    assert session_stack.request("POST", "/flow_runs/count", {}) == before
    assert not program.storage.exists() or list(program.storage.iterdir()) == []


def test_run_prints_the_report_on_stdout_and_everything_else_on_stderr(
    program: Program, work: str, trace: Path
) -> None:
    file = write_items(program.folder / "items.jsonl", items(6))
    done = program(
        "run", "--deployment", work, "--items", str(file), "--batch-size", "3", "--max-in-flight", "2",
        "--param", f"trace={trace}", "--job-id", "plain", "--json",
    )  # fmt: skip

    assert done.code == 0, done.err
    report = done.json
    assert (report["job_id"], report["verdict"], report["failed_by_rule"]) == ("plain", "completed", False)
    assert report["items"] == {"total": 6, "succeeded": 6, "failed": 0, "unknown": 0, "not_started": 0}
    assert "job plain" in done.err
    assert "6 items: 6 succeeded" in done.err
    # What the commands that look at it say.
    assert program("status", "plain", "--json").json["state"] == "completed"
    assert program("report", "plain", "--json").json == report
    lines = [json.loads(line) for line in program("results", "plain", "--json").out.splitlines()]
    assert [line["result"] for line in lines] == list(range(6))


def test_items_come_from_stdin_as_json_lines(program: Program, work: str, trace: Path) -> None:
    text = "".join(json.dumps(item) + "\n" for item in items(3))
    flags = ["--deployment", work, "--items", "-", "--param", f"trace={trace}"]
    done = program("run", *flags, stdin=text)
    assert done.code == 0, done.err
    assert "all 3 items succeeded" in done.out


def test_failed_items_make_the_command_fail_unless_told_otherwise(program: Program, work: str, trace: Path) -> None:
    file = write_items(program.folder / "items.jsonl", [*items(3), {"n": 3, "fail": "ValueError"}])
    flags = ["--deployment", work, "--items", str(file), "--param", f"trace={trace}"]

    done = program("run", *flags, "--job-id", "strict")
    assert done.code == 1, done.err
    assert "1 of 4 items failed" in done.out
    assert "ValueError: item 3 is bad" in done.out
    assert program("report", "strict").code == 1

    # Exactly the failed ones again, as a new job, with a rule that forgives.
    again = program(
        "run", "--deployment", work, "--items", "job:strict?outcome=failed", "--param", f"trace={trace}",
        "--fail-if", "failed > 1", "--json",
    )  # fmt: skip
    assert again.code == 0, again.err
    assert again.json["items"]["total"] == 1


def test_a_tripped_kill_switch_ends_with_1_and_says_what_was_not_run(program: Program, work: str, trace: Path) -> None:
    file = write_items(program.folder / "items.jsonl", items(20, fail="ValueError"))
    done = program(
        "run", "--deployment", work, "--items", str(file), "--batch-size", "2", "--max-in-flight", "1",
        "--param", f"trace={trace}", "--kill-switch", "failed >= 2", "--json",
    )  # fmt: skip
    assert done.code == 1, done.err
    report = done.json
    assert report["verdict"] == "tripped"
    assert report["kill_switch"]["tripped"] is True
    assert report["items"]["not_started"] >= 16
    assert sum(report["items"][k] for k in ("succeeded", "failed", "unknown", "not_started")) == 20


def test_ctrl_c_stops_the_job_and_waits_for_its_report(program: Program, work: str, trace: Path) -> None:
    file = write_items(program.folder / "items.jsonl", items(30, seconds=1))
    program.environment |= {"ORCHESTRATOR_FENCE_SECONDS": "1", "ORCHESTRATOR_ITEM_GRACE_SECONDS": "2"}
    process = program.start(
        "run", "--deployment", work, "--items", str(file), "--batch-size", "10", "--max-in-flight", "2",
        "--param", f"trace={trace}", "--job-id", "interrupted", "--json",
    )  # fmt: skip
    try:
        eventually(lambda: started(trace) >= 2, 60, "items run")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 4, err
    report = json.loads(out)
    assert report["verdict"] == "cancelled"
    assert report["items"]["not_started"] > 0
    assert "stopping the job" in err
    assert "Traceback" not in err


def test_a_second_ctrl_c_leaves_at_once_and_the_stop_holds(program: Program, work: str, trace: Path) -> None:
    file = write_items(program.folder / "items.jsonl", items(10, seconds=3))
    process = program.start(
        "run", "--deployment", work, "--items", str(file), "--param", f"trace={trace}", "--job-id", "left",
    )  # fmt: skip
    try:
        eventually(lambda: started(trace) >= 1, 60, "an item runs")
        process.send_signal(signal.SIGINT)
        eventually(lambda: (program.storage / "left" / "stop.json").exists(), 10, "the stop was written")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "orchestrator status" in err
    assert "Traceback" not in err
    # The folder alone makes the child stop; settling is for whoever resumes.
    done = program("resume", "left", "--json")
    assert done.code == 4, done.err
    assert done.json["verdict"] == "cancelled"


def test_a_killed_parent_is_resumed_and_only_what_is_left_is_run(program: Program, work: str, trace: Path) -> None:
    file = write_items(program.folder / "items.jsonl", items(12, seconds=0.5))
    process = program.start(
        "run", "--deployment", work, "--items", str(file), "--batch-size", "4", "--max-in-flight", "1",
        "--param", f"trace={trace}", "--job-id", "killed",
    )  # fmt: skip
    try:
        eventually(lambda: started(trace) >= 5, 90, "the second batch runs")
    finally:
        process.kill()
        process.communicate()

    done = program("resume", "killed", "--json")

    assert done.code == 0, done.err
    assert done.json["items"] == {"total": 12, "succeeded": 12, "failed": 0, "unknown": 0, "not_started": 0}
    assert started(trace) == 12  # nothing was run twice: the child lived on


def test_another_deploy_leaves_the_flows_of_the_first_where_they_are(program: Program, stack: Stack) -> None:
    stack.create_pool("another-pool")
    program("deploy", "--pool", "test-pool", "--json")
    told = program("deploy", "--pool", "another-pool", "--name", "another", "--json").json
    assert told["also"] == ["control-job/another", "cleanup-jobs/another"]
    for name, pool in (("default", "test-pool"), ("another", "another-pool")):
        for flow in ("orchestrate", "control-job", "cleanup-jobs"):
            assert stack.request("GET", f"/deployments/name/{flow}/{name}")["work_pool_name"] == pool


def test_detach_stages_starts_the_parent_and_returns(program: Program, work: str, trace: Path) -> None:
    assert program("deploy", "--pool", "test-pool", "--json").json["deployment"] == "orchestrate/default"
    file = write_items(program.folder / "items.jsonl", items(120, seconds=1))
    flags = ["--deployment", work, "--items", str(file), "--batch-size", "60", "--param", f"trace={trace}"]

    done = program("run", *flags, "--job-id", "detached", "--detach", "--json")

    assert done.code == 0, done.err
    assert (done.json["items"], done.json["batches"]) == (120, 2)
    file.unlink()  # the parent needs the staged items alone
    eventually(lambda: started(trace) >= 1, 90, "items run")
    assert program("status", "detached", "--json").json["state"] == "running"
    stopped = program("stop", "detached", "--reason", "enough seen", "--wait", "60", "--json")
    assert stopped.json["report"]["verdict"] == "cancelled"
    assert program("report", "detached").code == 4


def test_up_serves_deployments_until_ctrl_c(program: Program) -> None:
    (program.folder / "flows.py").write_text("from prefect import flow\n@flow\ndef hi() -> None: ...\n")
    (program.folder / "prefect.yaml").write_text(
        "deployments: [{name: there, entrypoint: 'flows.py:hi', work_pool: {name: other-pool}}]"
    )
    process = program.start("up", "--json")
    assert process.stdout is not None
    try:
        facts = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        assert facts["deployments"] == sorted(["hi/there", *(own.name for own in OWN)])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=100)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert not Path(facts["home"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("trip", [False, True])
def test_the_demo_shows_what_it_says(trip: bool, lonely: Program) -> None:
    done = lonely(
        "demo", "--json", *(["--trip", "--files", "900"] if trip else ["--files", "160"]), deadline_seconds=220
    )
    assert done.code == 0, done.err
    facts = done.json
    assert facts["report"]["verdict"] == ("tripped" if trip else "completed")
    assert facts["lines"] > 10_000
    assert len(facts["largest"]) == 5
    assert (facts["report"]["items"]["not_started"] > 0) is trip
    # The results stay where it says, after the server is gone.
    storage = facts["results"].removesuffix("/demo")
    assert len(lonely("results", "demo", "--storage", storage).out.splitlines()) == facts["files"]
