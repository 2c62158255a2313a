"""Which job folders the runs of which pools share with this machine: the table of `orchestrator.flows.sharing`."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from orchestrator.engine.admin import Pool
from orchestrator.engine.gateway import Deployment
from orchestrator.errors import EngineUnavailableError, StorageError
from orchestrator.flows.sharing import check_seen
from orchestrator.store import places

FOLDER = "/srv/jobs"
MOUNT = [f"{FOLDER}:{FOLDER}"]
LOCAL = (FOLDER, f"file://{FOLDER}", f"{FOLDER}/")
LOCAL_BLOCKS = ("block:local-file-system/jobs", "block:remote-file-system/path", "block:remote-file-system/file-url")
REMOTE = ("s3://bucket/jobs", "abfs://c@a.dfs.core.windows.net/jobs", "block:remote-file-system/bucket")
OTHERS = ("kubernetes", "ecs", "cloud-run-v2:push", "a-type-of-their-own")

CASES = [
    *((root, type_, (), True) for root in (*LOCAL, *LOCAL_BLOCKS, *REMOTE) for type_ in (None, "process")),
    *((root, "docker", MOUNT, True) for root in (*LOCAL, *LOCAL_BLOCKS, *REMOTE)),
    *((root, "docker", (), False) for root in (*LOCAL, *LOCAL_BLOCKS)),
    *((root, type_, (), False) for root in LOCAL for type_ in OTHERS),
    *((root, type_, (), True) for root in LOCAL_BLOCKS for type_ in OTHERS),
    *((root, type_, MOUNT, True) for root in (*LOCAL, *LOCAL_BLOCKS) for type_ in OTHERS),
    *((root, type_, (), True) for root in REMOTE for type_ in ("docker", *OTHERS)),
]


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "local-file-system/jobs": FOLDER,
        "remote-file-system/path": FOLDER,
        "remote-file-system/file-url": f"file://{FOLDER}",
        "remote-file-system/bucket": "s3://bucket/jobs",
    }
    monkeypatch.setattr(places, "_resolvers", {"block": lambda block: (known[block], {})})


def deployment(pool_type: str | None, volumes: object) -> Deployment:
    name = None if pool_type is None else "the-pool"
    return Deployment("d", "a/b", "f", "a", name, pool_type, None, {}, volumes=volumes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("root", "pool_type", "volumes", "seen"), CASES)
def test_the_whole_table(root: str, pool_type: str | None, volumes: list[str], seen: bool) -> None:
    asked: list[Deployment | Pool] = [deployment(pool_type, volumes)]
    if pool_type is not None:  # what `deploy` asks about is a pool
        asked.append(Pool("the-pool", pool_type, False, None, 1, volumes=volumes))
    for one in asked:
        if seen:
            check_seen(root, one, "child runs")
            continue
        with pytest.raises(StorageError) as refused:
            check_seen(root, one, "child runs")
        assert refused.value.field == "storage"
        assert f"which child runs on the {pool_type} pool 'the-pool' cannot see" in str(refused.value)
        assert "give a URL that both sides reach, e.g. s3://bucket/jobs, or mount it there" in str(refused.value)


def test_the_remedy_is_one_that_works_on_that_pool() -> None:
    with pytest.raises(StorageError, match=re.escape(f'job variable volumes=["{FOLDER}:{FOLDER}"]')):
        check_seen(FOLDER, deployment("docker", ()), "the parent")
    with pytest.raises(StorageError, match="name it by a block: block:local-file-system/NAME"):
        check_seen(FOLDER, deployment("kubernetes", ()), "the parent")


def test_a_folder_that_a_block_names_is_told_with_its_path() -> None:
    with pytest.raises(StorageError, match=r"block:local-file-system/jobs \(/srv/jobs\) is a folder of this machine"):
        check_seen("block:local-file-system/jobs", deployment("docker", ()), "child runs")


@pytest.mark.parametrize(
    ("volumes", "seen"),
    [
        (["/srv/jobs:/srv/jobs"], True),
        (["/srv:/srv"], True),
        (["/data:/"], True),
        (["jobs:/srv/jobs:rw,z"], True),
        (["/srv/jobs:/jobs"], False),  # there, and under another name
        (["/srv/jobs:/srv/jobs:ro"], False),
        (["/srv/job:/srv/job"], False),
        (["/srv/jobs"], False),  # a volume of each container's own
        ([{"name": "jobs", "mountPath": "/srv/jobs"}], False),  # not as Docker writes them
        ("/srv/jobs:/srv/jobs", False),
        (None, False),
        ([], False),
    ],
)
def test_containers_see_what_they_mount_for_writing(volumes: object, seen: bool) -> None:
    mounting = {"volumes": volumes}
    others = replace(deployment("docker", MOUNT), volumes=[] if seen else MOUNT)  # the runs' own variables go first
    if seen:
        check_seen(FOLDER, others, "child runs", mounting)
    else:
        with pytest.raises(StorageError, match="cannot see"):
            check_seen(FOLDER, others, "child runs", mounting)


def test_a_block_that_cannot_be_read_now_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(block: str) -> tuple[str, dict[str, object]]:
        raise EngineUnavailableError("Prefect is away")

    monkeypatch.setattr(places, "_resolvers", {"block": away})
    with pytest.raises(EngineUnavailableError):
        check_seen("block:local-file-system/jobs", deployment("docker", ()), "child runs")
