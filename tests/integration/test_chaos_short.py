"""The fault campaign (`make chaos`) in a short form on a stack of its own, and its judge before forged evidence."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from orchestrator.store.layout import log as log_name
from orchestrator.testing import simulate
from tests.chaos.campaign import Campaign, Judgement, Plan
from tests.chaos.checker import check
from tests.chaos.evidence import Evidence, Execution, RunHistory, read_attempts
from tests.chaos.faults import Strike
from tests.chaos.jobs import Size
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.telling import story, summary, table

FAULTS = ("kill-child", "cut", "answer-503", "server-2s", "kill-parent")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_survives_a_killed_child_a_bad_connection_a_server_restart_and_its_parents_death(tmp_path: Path) -> None:
    size = Size(items=24, batch_size=3, max_in_flight=3, shortest=0.3, longest=1.2)
    plan = Plan(
        seed=11, seconds=600, kinds=FAULTS, lanes=("process",), size=size, jobs=1, once=True, pause=(0.2, 0.8),
        deadline_seconds=600, workers=1, doors=("parent",),
    )  # fmt: skip
    judgement = Campaign(plan, tmp_path / "chaos", echo=False).run()
    print(table(judgement), summary(judgement), sep="\n\n")
    assert not judgement.violations, story(judgement)
    assert [strike.kind for strike in judgement.strikes] == list(FAULTS)
    assert judgement.resumed >= 1
    (evidence,) = judgement.evidence
    assert len(evidence.outcomes) == 24


# ---------------------------------------------------------------------- the connections' faults


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before a small server that answers HTTP with 200 and echoes what comes over a websocket."""

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        return None if request.headers.get("Upgrade") else connection.respond(200, "well")

    def echo(ws: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            for message in ws:
                ws.send(message)

    with serve(echo, "127.0.0.1", 0, process_request=answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        proxy = Proxy(server.socket.getsockname()[1])
        proxy.start()
        try:
            yield proxy
        finally:
            proxy.stop()
            server.shutdown()
            thread.join()


def get(proxy: Proxy, timeout: float = 30) -> httpx.Response:
    return httpx.get(proxy.url, timeout=timeout, trust_env=False)


@pytest.mark.parametrize(("mode", "status"), [(Mode.BUSY, 503), (Mode.TOO_MANY, 429)])
def test_the_proxy_answers_instead_of_the_server_until_told_otherwise(proxy: Proxy, mode: Mode, status: int) -> None:
    assert get(proxy).text.strip() == "well"
    proxy.set(mode)
    answer = get(proxy)
    assert answer.status_code == status
    assert answer.headers.get("Retry-After") == ("2" if status == 429 else None)
    proxy.set(Mode.PASS)
    assert get(proxy).status_code == 200
    assert proxy.hit >= 1


def test_the_proxy_refuses_connections_and_takes_them_again_at_the_same_port(proxy: Proxy) -> None:
    proxy.set(Mode.REFUSE)
    with pytest.raises(httpx.ConnectError):
        get(proxy)
    proxy.set(Mode.PASS)
    assert get(proxy).status_code == 200


def test_the_proxy_swallows_what_it_is_sent(proxy: Proxy) -> None:
    with talking(proxy) as ws:
        proxy.set(Mode.BLACKHOLE)
        with pytest.raises(httpx.ReadTimeout):
            get(proxy, timeout=0.5)
        ws.send("lost")
        with pytest.raises(TimeoutError):
            ws.recv(timeout=0.5)
        proxy.set(Mode.PASS)
        with pytest.raises(ConnectionClosedError):
            ws.recv(timeout=30)
    assert get(proxy).status_code == 200


def test_the_proxy_delays_each_piece_of_data(proxy: Proxy) -> None:
    with talking(proxy) as ws:
        proxy.set(Mode.DELAY, delay=0.3)
        began = time.monotonic()
        ws.send("later")
        assert ws.recv(timeout=30) == "later"
        assert time.monotonic() - began >= 0.6, "there and back"


def test_the_proxy_resets_connections_and_closes_websockets_as_a_server_that_goes_away(proxy: Proxy) -> None:
    with talking(proxy) as ws:
        proxy.cut()
        with pytest.raises(ConnectionClosedError):
            ws.recv(timeout=30)
    with talking(proxy) as ws:
        proxy.close_websockets(1001)
        with pytest.raises(ConnectionClosedOK) as closed:
            ws.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    assert proxy.hit == 2


@contextmanager
def talking(proxy: Proxy) -> Iterator[ClientConnection]:
    with connect(proxy.url.replace("http", "ws"), proxy=None, close_timeout=1) as ws:
        ws.send("hello")
        assert ws.recv(timeout=30) == "hello"
        yield ws


# ---------------------------------------------------------------------- the judge


@pytest.fixture
def honest(tmp_path: Path) -> Evidence:
    """A job of 12 items in 3 batches whose folder is real, with the server and the items as they should be.

    Item 5 was in progress when attempt 0 of batch 1 was lost, and was run again by attempt 1.
    """
    simulation = simulate(
        lambda item: item, range(12), batch_size=4, max_in_flight=2, storage=str(tmp_path), job_id="j"
    )
    folder = tmp_path / "j"
    lost = folder / log_name(1, 0)
    lines = lost.read_text().splitlines(keepends=True)
    lost.write_text("".join(lines[:2]))  # the header and item 4
    (folder / "b").joinpath(lost.parent.name, "a0.end").unlink()
    (lost.parent / "a0.revoked").write_text(json.dumps({"format": 1, "records": 1}))
    header = json.dumps({"format": 1, "accepts": {"0": 1}, "token": "t"}) + "\n"
    (lost.parent / "a1.jsonl").write_text(header + "".join(lines[2:]))
    evidence = Evidence(
        job="j",
        max_in_flight=2,
        attempts_allowed=3,
        expected=dict.fromkeys(range(12), "succeeded"),
        report=json.loads((folder / "report.json").read_bytes()),
        outcomes=[(o.index, o.outcome.value, o.attempt, o.error_type) for o in simulation.folder.outcomes()],
        attempts=read_attempts(folder),
        executions=[],
        runs=[
            RunHistory("r0", "b 1/3", "j/n/0/0", 100.0, "COMPLETED", 110.0),
            RunHistory("r1", "b 2/3", "j/n/1/0", 100.0, "CRASHED", 106.0),
            RunHistory("r1again", "b 2/3 again 1", "j/n/1/1", 111.0, "COMPLETED", 130.0),
            RunHistory("r2", "b 3/3", "j/n/2/0", 112.0, "COMPLETED", 120.0),
        ],
    )
    evidence.attempts[1][0].revoked_at = 107.0
    for index, outcome, attempt, _ in evidence.outcomes:
        start = 101.0 + index if attempt == 0 else 116.0 + index
        run = Execution(index, index // 4, attempt or 0, 1000 + index // 4, "r", start, start + 0.5, outcome)
        evidence.executions.append(run)
    evidence.executions.append(Execution(5, 1, 0, 1001, "r1", 105.5, gone=106.0))
    return evidence


def violations(evidence: Evidence) -> str:
    return "\n".join(check(evidence).violations)


def test_an_honest_job_passes_and_its_item_that_ran_again_is_listed(honest: Evidence) -> None:
    found = check(honest)
    assert found.violations == []
    assert [(a.first.index, a.second.attempt, a.overlapped) for a in found.again] == [(5, 1, 0.0)]
    assert found.most_at_once == 2


def _forged(evidence: Evidence, how: str) -> None:
    run, item5 = evidence.runs[-1], evidence.executions[-1]
    match how:
        case "lost":
            del evidence.outcomes[7]
        case "twice":
            evidence.outcomes.append(evidence.outcomes[7])
        case "changed":
            evidence.outcomes[7] = (7, "failed", 1, "ValueError")
        case "stranger":
            evidence.outcomes.append((12, "succeeded", 0, None))
        case "unknown":
            evidence.outcomes[7] = (7, "unknown", None, None)
        case "no report":
            evidence.report = None
        case "numbers":
            evidence.report = copy.deepcopy(dict(evidence.report or {}))
            evidence.report["items"]["succeeded"] += 1
        case "unseen":
            evidence.executions = [x for x in evidence.executions if x.index != 7]
        case "running":
            run.state, run.ended = "RUNNING", None
        case "process":
            evidence.alive.append((4711, run.id))
        case "too many":
            run.created = 101.0
        case "two runs":
            evidence.runs.append(RunHistory("r3", run.name, run.key, 131.0, "COMPLETED", 132.0))
        case "counted line twice":
            evidence.attempts[1][1].lines.append((4, "succeeded"))
        case "ran again though counted":
            evidence.executions.append(Execution(4, 1, 1, 1001, "r1again", 118.0, 118.5, "succeeded"))
        case "same attempt twice":
            evidence.executions.append(Execution(9, 2, 0, 1002, "r2", 125.0, 125.5, "succeeded"))
        case "after it was given up":
            item5.start, item5.gone = 120.0, None
        case "did not wait":
            next(x for x in evidence.executions if x.attempt == 1).start = 109.0
        case "not given up":
            evidence.attempts[1][0].revoked_at = None


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("lost", "item 7 is lost"),
        ("twice", "item 7 has 2 outcomes"),
        ("changed", "item 7: the ledger says succeeded in attempt 1"),
        ("stranger", "item 12 has an outcome and was never given"),
        ("unknown", "item 7 is unknown where it should have succeeded"),
        ("no report", "there is no report"),
        ("numbers", "do not add up"),
        ("unseen", "item 7 is said to have succeeded in attempt 1, which nobody saw"),
        ("running", "1 child runs are not over, 0 are named unconfirmed: b 3/3 RUNNING"),
        ("process", "process 4711 of child run r2 is still there"),
        ("too many", "3 child runs were unsettled at once, and 2 were allowed"),
        ("two runs", "2 child runs have the key j/n/2/0"),
        ("counted line twice", "item 4 (batch 2) is counted 2 times"),
        ("ran again though counted", "item 4 was run again by attempt 1 after its outcome was counted"),
        ("same attempt twice", "item 9 was executed by attempt 0 and then by attempt 0"),
        ("after it was given up", "item 5 was started by attempt 0 13.0 s after that attempt was given up"),
        ("did not wait", "began 2.0 s after attempt 0 was given up, and had to wait 7 s"),
        ("not given up", "attempt 1 began while attempt 0 was not given up"),
    ],
)
def test_the_judge_finds_what_is_forged(honest: Evidence, how: str, said: str) -> None:
    _forged(honest, how)
    assert said in violations(honest)


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (lambda lines: lines[:-1], "item 7: "),
        (lambda lines: [*lines, lines[-1].replace('"i":7', '"i":6')], "item 6 (batch 2) is counted 2 times"),
        (lambda lines: [lines[0], *(line.replace("succeeded", "failed") for line in lines[1:])], "reported is"),
    ],
    ids=["a line removed", "a line doubled", "an outcome changed"],
)
def test_the_judge_finds_what_is_forged_in_the_ledgers_files(
    honest: Evidence, tmp_path: Path, forge: Callable[[list[str]], list[str]], said: str
) -> None:
    log = tmp_path / "j" / log_name(1, 1)
    before = log.read_text().splitlines(keepends=True)
    log.write_text("".join(forge(before)))
    revoked_at = honest.attempts[1][0].revoked_at
    honest.attempts = read_attempts(tmp_path / "j")
    honest.attempts[1][0].revoked_at = revoked_at
    if len(forge(before)) < len(before):  # what the ledger has lost, the project's reader no longer reports
        honest.outcomes = [o if o[0] != 7 else (7, "unknown", None, None) for o in honest.outcomes]
        said = "item 7 is unknown where it should have succeeded"
    assert said in violations(honest)


# ---------------------------------------------------------------------- what people see of it


def test_a_campaigns_table_names_the_fault_that_an_item_was_lost_to(honest: Evidence, tmp_path: Path) -> None:
    plan = Plan(seed=1, seconds=60, kinds=("cut", "kill-child", "disk-full"))
    judgement = Judgement(plan, tmp_path, skipped={"disk-full": "only root may mount a tmpfs"}, evidence=[honest])
    judgement.strikes = [
        Strike("cut", 103.0, 104.0, "parent: cut", hit=4, jobs=["j"]),
        Strike("kill-child", 105.9, 106.0, "child run r1", jobs=["j"]),
    ]
    judgement.findings["j"] = check(honest)
    shown = table(judgement).splitlines()
    assert shown[2:] == [
        "| cut | all connections reset, three times | 1 | 1 | 0 | 0 | 0 s |",
        "| kill-child | SIGKILL of a child run at work | 1 | 1 | 1 | 0 | 4 s |",
        "| disk-full | the job folders' disk full, 8 to 35 s | not possible: only root may mount a tmpfs | 0 | 0 | 0 "
        "| 0 s |",
    ]
    assert "12 items: 12 succeeded. 3 batches in 4 attempts" in summary(judgement)
    assert judgement.violations == []


def test_a_violation_is_told_with_its_story(honest: Evidence, tmp_path: Path) -> None:
    honest.runs[-1].state = "RUNNING"
    honest.executions = [x for x in honest.executions if x.index != 7]
    judgement = Judgement(Plan(seed=1, seconds=60, kinds=()), tmp_path, evidence=[honest])
    judgement.findings["j"] = check(honest)
    (tmp_path / "nemesis.log").write_text("12.0 s  kill-child: child run r1")
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "j").symlink_to(tmp_path / "j")
    told = story(judgement)
    for part in ("* j: item 7 is said to have succeeded", "child run r1", "Batch 2 in its folder", "a1.jsonl"):
        assert part in told


def test_an_unknown_fault_is_refused_with_where_to_look() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--only", "cut,earthquake"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown faults earthquake; --list prints them" in done.stderr
