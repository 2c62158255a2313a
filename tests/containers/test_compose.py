"""The stack of docker/compose.yaml, by the commands of docs/stack.md: runs jobs, loses parts, keeps what it knows."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from ipaddress import ip_address

import psutil
import pytest
import websockets
import yaml
from websockets.exceptions import ConnectionClosed

from orchestrator.stack.containers import IMAGE
from tests.containers.compose import JOBS_LABEL, SERVICE_LABEL, Compose, ComposeError, compose_program, section
from tests.containers.engine import TEST_LABEL, Engine, program
from tests.integration.job_support import TERMINAL
from tests.s3server import s3_server
from tests.support import eventually

FLOW = '''
import time
from pathlib import Path

from orchestrator import batch_flow


@batch_flow
def slow(item: dict, *, pause: float = 0) -> str:
    """Say where an item ran: beside a worker, or in a container of its run."""
    time.sleep(pause)
    return "worker" if b"worker" in Path("/proc/1/cmdline").read_bytes() else "container"
'''
DEPLOYMENTS = {
    "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "/jobs/flows"}}],
    "deployments": [
        {"name": name, "entrypoint": "slow.py:slow", "work_pool": {"name": pool}}
        for name, pool in (("default", "local"), ("docker", "docker"))
    ],
}
BLOCK = """
from prefect.filesystems import RemoteFileSystem
RemoteFileSystem(basepath="s3://jobs/second", settings={settings!r}).save("second", overwrite=True)
"""
BOTH = json.dumps({"worker": "slow/default", "container": "slow/docker"})


@pytest.fixture(scope="module")
def compose(docker_engine: Engine, flow_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    stack = Compose(docker_engine, tmp_path_factory.mktemp("compose"), flow_image)
    try:
        stack.up()
        yield stack
    finally:
        stack.remove()


@pytest.fixture(scope="module")
def slow(compose: Compose) -> Compose:
    """A batch flow of one's own on both work pools; its code lies beside the jobs."""
    compose.put("/jobs/flows/slow.py", FLOW)
    compose.put("/jobs/flows/prefect.yaml", json.dumps(DEPLOYMENTS))
    compose.run("-c", "cd /jobs/flows && prefect --no-prompt deploy --all", entrypoint="sh")
    return compose


def items(compose: Compose, name: str, each: int) -> str:
    """A file with as many items for either kind of worker."""
    lines = [json.dumps({"where": where, "number": n}) for where in ("worker", "container") for n in range(each)]
    compose.put(f"/jobs/flows/{name}.jsonl", "\n".join(lines) + "\n")
    return f"/jobs/flows/{name}.jsonl"


def results(compose: Compose, job: str) -> list[tuple[int, str]]:
    """Number and result of each item that succeeded."""
    lines = compose.run("results", job, "--json").stdout.splitlines()
    return [(found["index"], found["result"]) for found in map(json.loads, lines)]


def at(time: str) -> datetime:
    return datetime.fromisoformat(time[:19])


def test_one_command_brings_everything_up_in_good_health(compose: Compose) -> None:
    assert compose.unwell() == {}
    assert "background" in compose.read([line for line in section("Start") if line.endswith(" ps")])
    migrated = at(compose.service("migrate").attrs["State"]["FinishedAt"])
    for server in ("api-1", "api-2", "background"):
        assert at(compose.service(server).attrs["State"]["StartedAt"]) >= migrated
    names = {found["name"] for found in compose.ask("POST", "/work_pools/filter", {})}
    assert {"local", "docker"} <= names
    for name in ("local", "docker"):
        eventually(lambda: compose.ask("GET", f"/work_pools/{name}")["status"] == "READY", 120, f"{name} has a worker")  # noqa: B023
    assert compose.ask("GET", "/deployments/name/orchestrate/default")["work_pool_name"] == "local"
    assert compose.ask("GET", "/deployments/name/source-metrics/docker")["work_pool_name"] == "docker"


def test_it_is_reached_from_this_machine_alone(compose: Compose) -> None:
    listening = {
        (c.laddr.port, c.laddr.ip)
        for c in psutil.net_connections("inet")
        if c.status == psutil.CONN_LISTEN and c.laddr.port in compose.ports.values()
    }
    assert {port for port, _ in listening} == set(compose.ports.values())
    assert {ip for _, ip in listening if not ip_address(ip).is_loopback} == set()


def test_without_the_password_there_is_nothing_to_see(compose: Compose) -> None:
    assert compose.refused(None) == 401
    assert compose.refused("admin:wrong") == 401
    assert compose.refused(compose.secrets["PREFECT_AUTH"]) == 200
    wrong = compose.run("doctor", env={"PREFECT_API_AUTH_STRING": "admin:wrong"}, check=False)
    assert wrong.returncode == 3
    assert b"PREFECT_API_AUTH_STRING" in wrong.stdout + wrong.stderr


@pytest.mark.parametrize("path", ["/events/out", "/logs/out"])
async def test_websockets_pass_the_one_address_with_the_password_only(compose: Compose, path: str) -> None:
    url = compose.api_url.replace("http://", "ws://") + path
    for token, welcome in ((compose.secrets["PREFECT_AUTH"], True), ("admin:wrong", False)):
        async with websockets.connect(url, subprotocols=[websockets.Subprotocol("prefect")], proxy=None) as socket:
            await socket.send(json.dumps({"type": "auth", "token": token}))
            if welcome:
                assert json.loads(await socket.recv())["type"] == "auth_success"
            else:
                with pytest.raises(ConnectionClosed):
                    await socket.recv()


@pytest.mark.parametrize("secret", ["PREFECT_AUTH", "POSTGRES_PASSWORD", "REDIS_PASSWORD"])
def test_nothing_starts_without_a_secret(compose: Compose, secret: str) -> None:
    compose.write_environment(**{secret: ""})
    try:
        with pytest.raises(ComposeError, match=f"{secret} is empty, set it in docker/.env"):
            compose("config")
    finally:
        compose.write_environment()


def test_servers_alone_know_the_database(compose: Compose) -> None:
    """What workers know, every run knows: they hand their settings on."""
    for service in ("worker-process", "worker-docker"):
        environment = "\n".join(compose.service(service).attrs["Config"]["Env"])
        assert compose.secrets["POSTGRES_PASSWORD"] not in environment
        assert compose.secrets["REDIS_PASSWORD"] not in environment


def test_links_lead_to_the_address_of_browsers_and_the_shells_own_storage_is_another_matter(compose: Compose) -> None:
    shell = compose.environment | {"ORCHESTRATOR_STORAGE": "/home/me/jobs"}
    done = subprocess.run(
        [*compose_program(), "config"], cwd=compose.folder, env=shell, capture_output=True, text=True, check=True
    )
    services = yaml.safe_load(done.stdout)["services"]
    for service in ("setup", "worker-process", "worker-docker"):
        environment = services[service]["environment"]
        assert environment["PREFECT_UI_URL"] == compose.settings["PUBLIC_URL"]
        assert environment["ORCHESTRATOR_STORAGE"] == "/jobs"


def test_no_secret_stands_on_a_command_line(compose: Compose) -> None:
    """Where `ps` shows it to everybody on the machine: of what runs now, and of what was started and is over."""
    for container in compose.containers():
        lines = [" ".join(row) for row in container.top()["Processes"]] if container.status == "running" else []
        lines += [*container.attrs["Args"], *(container.attrs["Config"].get("Healthcheck") or {}).get("Test", [])]
        for name, secret in compose.secrets.items():
            assert not any(secret in line for line in lines), (container.labels[SERVICE_LABEL], name)


def test_the_page_s_first_job_runs_in_containers(compose: Compose) -> None:
    said = compose.read([line for line in section("Start") if "run --rm" in line])
    assert "first" in said
    assert compose.report("first")["verdict"] == "completed"


def test_one_job_runs_on_both_kinds_of_worker(slow: Compose) -> None:
    file = items(slow, "both", 4)
    slow.run("run", "--deployment", BOTH, "--group-by", "where", "--items", file, "--batch-size", "2",
             "--max-in-flight", "2", "--job-id", "both", "--detach")  # fmt: skip
    eventually(lambda: ended(slow, "both"), 400, "the job is over")
    assert slow.report("both")["verdict"] == "completed"
    assert results(slow, "both") == [(n, "worker") for n in range(4)] + [(n, "container") for n in range(4, 8)]
    runs = slow.runs(tags={"all_": ["job:both"]})
    pools = sorted(run["work_pool_name"] for run in runs if run["state_type"] == "COMPLETED" and "/" in run["name"])
    assert pools == ["docker", "docker", "local", "local"]
    eventually(lambda: not slow.child_containers(), 60, "containers of child runs are gone")


def ended(compose: Compose, job: str) -> bool:
    """Whether its deployed parent has; two askings a second are enough."""
    time.sleep(0.5)
    return bool(compose.runs(name={"any_": [f"job {job}"]}, state={"type": {"any_": sorted(TERMINAL)}}))


def whole_although(compose: Compose, job: str, each: int, hurt: Callable[[], object]) -> None:
    """Run a job on both kinds of worker, and hurt the stack once two child runs run: no item is lost."""
    file = items(compose, job, each)
    silence = {"ORCHESTRATOR_ALIVE_SECONDS": "3", "ORCHESTRATOR_CANCEL_DEADLINE_SECONDS": "5"}
    with ThreadPoolExecutor(1) as thread:
        parent = thread.submit(
            compose.run, "run", "--deployment", BOTH, "--group-by", "where", "--items", file, "--batch-size", "2",
            "--max-in-flight", "2", "--param", "pause=6", "--job-id", job, env=silence, check=False,
            deadline_seconds=540,
        )  # fmt: skip

        def both_run() -> bool:
            """Not while one is Pending: whose worker dies then, it is given up after start_timeout_seconds only."""
            time.sleep(0.5)
            assert not parent.done(), parent.result().stderr.decode(errors="replace")[-2000:]
            found = compose.runs(tags={"all_": [f"job:{job}"]}, state={"type": {"not_any_": sorted(TERMINAL)}})
            return [run["state_type"] for run in found if "/" in run["name"]] == ["RUNNING", "RUNNING"]

        eventually(both_run, 240, "two child runs run")
        hurt()
        done = parent.result(540)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    report = compose.report(job)
    assert report["items"]["succeeded"] == report["items"]["total"] == 2 * each
    assert [number for number, _ in results(compose, job)] == list(range(2 * each))


def test_a_job_loses_an_api_server_and_a_worker_in_the_middle_and_ends_whole(slow: Compose) -> None:
    def hurt() -> None:
        slow.service("worker-process").kill()
        slow("stop", "--timeout", "2", "api-2")
        eventually(
            lambda: slow.service("worker-process").attrs["State"]["Status"] == "exited", 30, "the worker is gone"
        )
        slow("start", "worker-process")

    whole_although(slow, "lossy", 4, hurt)
    children = [run for run in slow.runs(tags={"all_": ["job:lossy"]}) if "/" in run["name"]]
    assert len(children) > 4, "a batch was tried again"
    slow("start", "api-2")
    slow.be_well()


def test_a_job_goes_on_when_redis_and_the_database_come_back(slow: Compose) -> None:
    def hurt() -> None:
        for service in ("redis", "postgres"):
            slow.service(service).kill()
            slow("start", service)
            eventually(lambda: service not in slow.unwell(), 120, f"{service} is back")  # noqa: B023

    whole_although(slow, "shaken", 2, hurt)
    slow.be_well()


def test_workers_are_scaled_by_one_command(slow: Compose) -> None:
    def online() -> int:
        found = slow.ask("POST", "/work_pools/local/workers/filter", {})
        return sum(worker["status"] == "ONLINE" for worker in found)

    before = online()
    slow.read(section("Workers"))
    eventually(lambda: online() > before, 180, "a second worker is online")
    slow.be_well()
    answering = {
        c.laddr.ip
        for c in psutil.net_connections("inet")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == slow.ports["WORKER_PROCESS_PORT"]
    }
    assert len(answering) == 2, "each answers for its own health"
    slow("up", "--detach", "--no-deps", "--scale", "worker-process=1", "worker-process")
    assert len(slow.containers("worker-process")) == 1


def test_what_it_knows_outlives_it(slow: Compose) -> None:
    """From a backup alone, on empty volumes."""
    known = job_of_its_own(slow, "kept")
    slow.read(section("Backup"))
    slow.read(section("Stop"))
    assert slow.containers() == slow.child_containers() == []
    assert len(slow.volumes()) == 3, "the data stay"
    slow("down", "--volumes")
    assert slow.volumes() == []
    slow.read(section("Restore"))
    slow.be_well()
    assert known() == {"runs": 1, "succeeded": 2}


def job_of_its_own(compose: Compose, job: str) -> Callable[[], dict[str, int]]:
    """A small job that is over; what server and folder know of it, whenever that is asked."""
    file = items(compose, job, 1)
    compose.run("run", "--deployment", "slow/default", "--items", file, "--job-id", job)

    def known() -> dict[str, int]:
        runs = compose.runs(tags={"all_": [f"job:{job}"]}, state={"type": {"any_": ["COMPLETED"]}})
        return {"runs": len(runs), "succeeded": compose.report(job)["items"]["succeeded"]}

    assert known() == {"runs": 1, "succeeded": 2}
    return known


def test_containers_of_a_second_machine_have_a_pool_of_their_own(compose: Compose) -> None:
    """As the page says, the second machine being the first: storage by a block, no volume of the stack in the pool.

    The last test of the stack, which keeps its jobs in that block from then on.
    """
    read = section("Workers on a second machine")
    (begin,) = (line for line in read if line.startswith("docker run "))
    here = [line for line in read if line != begin]
    for shown, typed in {
        "docker run ": f"docker run --network host --label {TEST_LABEL}={compose.engine.session} ",
        "worker-second": f"{compose.project}-second", "https://prefect.example.org/api": compose.api_url,
        "--env PREFECT_API_AUTH_STRING ": f"--env PREFECT_API_AUTH_STRING={compose.secrets['PREFECT_AUTH']} ",
        "/var/run/docker.sock:": f"{compose.settings['DOCKER_SOCKET']}:", IMAGE: compose.settings["FLOW_IMAGE"],
    }.items():  # fmt: skip
        assert shown in begin
        begin = begin.replace(shown, typed)
    with s3_server() as s3:
        block = BLOCK.format(settings=s3.block_settings("AKIASECOND", "second-block-secret"))
        compose.run("-c", block, entrypoint="python")
        compose.write_environment(JOB_STORAGE="block:remote-file-system/second")
        try:
            compose.up()
            variable = f" --job-variable '{json.dumps({'labels': {JOBS_LABEL: compose.project}})}'"
            compose.read([line + (variable if " deploy " in line else "") for line in here[:2]])
            compose.read([begin.replace("docker ", f"{program()} ", 1)])
            compose.read(here[2:])
            runs = [run for run in compose.runs(tags={"all_": ["job:there"]}) if "/" in run["name"]]
            assert {run["work_pool_name"] for run in runs} == {"second"}
            assert compose.report("there")["verdict"] == "completed"
        finally:
            for container in compose.engine.containers():
                if container.name.endswith("-second"):
                    container.remove(force=True)
