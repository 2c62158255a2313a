"""Bulk video ingest on a real server and worker, from the command line and through the parent's deployment."""

from __future__ import annotations

import json
import logging
import random
import secrets
import wave
from pathlib import Path
from typing import Any

import pytest

from benchmarks import videos as benchmark
from benchmarks.table import markdown
from deployments.video_ingest import VIDEOS, UnreadableVideoError, ingest
from orchestrator import ItemOutcome, JobFolder
from orchestrator.stack import Stack
from tests.e2e.conftest import Program
from tests.integration.job_support import MARKS, await_end, deploy_parent, start
from tests.prefect_stack import POOL
from tests.support import eventually
from tests.videos import CLIPS, clip, frames_of, library, replace

pytestmark = [*MARKS, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def deployed(session_stack: Stack) -> Stack:
    """The three of them and the parent as prefect.yaml says, but for the tests' worker."""
    session_stack.create_pool("local")
    ours = [f"video-ingest{kind}/default" for kind in ("", "-tasks", "-processes")]
    session_stack.deploy(ROOT / "prefect.yaml", *ours)
    session_stack.deploy(ROOT / "benchmarks" / "prefect.yaml", "bench-videos/default")
    for name in (*ours, "bench-videos/default"):
        found = session_stack.request("GET", f"/deployments/name/{name}")
        session_stack.request("PATCH", f"/deployments/{found['id']}", {"work_pool_name": POOL})
    with session_stack.activated():
        deploy_parent("videos")
    return session_stack


@pytest.fixture
def ids(tmp_path: Path) -> list[str]:
    return library(tmp_path / "videos", 60)


def spoil(folder: Path) -> dict[str, str]:
    """Make a few videos unusable; id -> what its error must say besides the id."""
    replace(folder, "v-00010", random.Random(0).randbytes(4000))
    replace(folder, "v-00021", b"")
    replace(folder, "v-00032", clip(3)[:1500])
    (folder / "v-00043.mp4").unlink()
    (folder / "v-00054.mp4").unlink()
    with wave.open(str(folder / "v-00054.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    return {
        "v-00010": "Invalid data found", "v-00021": "is empty", "v-00032": "cannot be decoded",
        "v-00043": "there is no file", "v-00054": "no video stream",
    }  # fmt: skip


def folders(home: Path) -> list[str]:
    return ["--param", f"source={home / 'videos'}", "--param", f"target={home / 'out'}"]


def errors_of(folder: JobFolder) -> dict[str, str]:
    """The failed items of a job whose items are ids: id -> error."""
    return {str(item.value): f"{r.error_type}: {r.error_text}" for item, r in folder.items([ItemOutcome.FAILED])}


def check_named(errors: dict[str, str], bad: dict[str, str]) -> None:
    assert set(errors) == set(bad)
    for video, words in bad.items():
        assert video in errors[video]
        assert words in errors[video]


def logs_of(stack: Stack, job: str) -> list[dict[str, Any]]:
    """What the child runs of a job logged, task runs included."""
    runs = stack.request("POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"job:{job}"]}}})
    found: list[dict[str, Any]] = stack.request(
        "POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"] for run in runs]}}, "limit": 200}
    )
    return found


def test_unusable_videos_fail_alone_and_are_named_with_the_reason(
    deployed: Stack, program: Program, ids: list[str]
) -> None:
    bad = spoil(program.folder / "videos")
    (program.folder / "ids.txt").write_text("\n".join(ids))
    job = f"videos-{secrets.token_hex(2)}"
    command = [
        "run",
        "--deployment",
        "video-ingest/default",
        "--items",
        "ids.txt",
        "--batch-size",
        "20",
        "--max-in-flight",
        "3",
    ]
    done = program(*command, *folders(program.folder), "--job-id", job, "--json")

    assert done.code == 1, done.err
    assert done.json["items"] == {"total": 60, "succeeded": 55, "failed": 5, "unknown": 0, "not_started": 0}
    check_named(errors_of(JobFolder(f"{program.storage}/{job}")), bad)
    good = [video for video in ids if video not in bad]
    out = program.folder / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{v}{end}" for v in good for end in (".jpg", ".json"))
    for video in good:
        facts = json.loads((out / f"{video}.json").read_text())
        assert (facts["video"], facts["frames"]) == (video, frames_of(int(video[2:]) % CLIPS))
        assert (out / f"{video}.jpg").read_bytes().startswith(b"\xff\xd8\xff")

    # Small logs: a warning per failed video, and no line about any other.
    logs = logs_of(deployed, job)
    warnings = [line["message"] for line in logs if line["level"] == logging.WARNING]
    assert len(warnings) == 5
    assert all(any(video in line for line in warnings) for video in bad)
    assert not [line["message"] for line in logs if line["level"] < logging.WARNING and "v-0" in line["message"]]
    assert any("18 succeeded, 2 failed" in line["message"] for line in logs), "no summary"

    # Mended, and only those run again; what is there is left as it is.
    written = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    for video in bad:
        (program.folder / "videos" / f"{video}.mp4").unlink(missing_ok=True)
        (program.folder / "videos" / f"{video}.mp4").write_bytes(clip(1))
    again = program("retry", job, "--job-id", f"{job}-again", "--json")
    assert again.code == 0, again.err
    assert again.json["items"]["succeeded"] == 5
    assert {name: (out / name).stat().st_mtime_ns for name in written} == written
    assert len(list(out.iterdir())) == 120


def test_a_task_run_per_video_has_its_id_and_no_stored_result(deployed: Stack, tmp_path: Path, ids: list[str]) -> None:
    bad = spoil(tmp_path / "videos")
    results = deployed.home / "storage"  # of every test of this server: compared, not expected to be empty
    before = set(results.glob("*"))
    job = f"tasks-{secrets.token_hex(2)}"
    run = start(deployed, {
        "deployment": "video-ingest-tasks/default",
        "items": {"kind": "inline", "items": ids},
        "batch_size": 60,
        "parameters": {"source": str(tmp_path / "videos"), "target": str(tmp_path / "out")},
        "advanced": {"job_id": job, "storage": str(tmp_path / "jobs")},
    }, deployment="orchestrate/videos")  # fmt: skip
    assert await_end(deployed, run, 150)["state"]["message"].startswith("5 of 60 items failed")
    check_named(errors_of(JobFolder(f"{tmp_path}/jobs/{job}")), bad)

    (child,) = deployed.request("POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"job:{job}"]}}})
    # Prefect records task runs some time after they ended.
    ended = {
        "task_runs": {"flow_run_id": {"any_": [child["id"]]}, "state": {"type": {"any_": ["COMPLETED", "FAILED"]}}}
    }

    def recorded() -> list[dict[str, Any]] | None:
        found = deployed.request("POST", "/task_runs/filter", ended)
        return found if len(found) == 60 else None

    tasks = eventually(recorded, 90, "all task runs are on record")
    assert tasks is not None
    assert sorted(t["name"] for t in tasks) == [f"ingest-{video}" for video in ids]
    assert all("video-ingest" in t["tags"] for t in tasks)
    failed = [t for t in tasks if t["state_type"] == "FAILED"]
    assert sorted(t["name"] for t in failed) == sorted(f"ingest-{video}" for video in bad)
    assert {t["run_count"] for t in failed} == {1}, "a video that will not get better was tried again"
    # The window: a task begins when another has ended.
    moments = sorted((m, 1 if m == t["start_time"] else -1) for t in tasks for m in (t["start_time"], t["end_time"]))
    running = most = 0
    for _, step in moments:
        running += step
        most = max(most, running)
    assert 1 < most <= VIDEOS
    # Prefect keeps no result, and no line for a video that went well.
    assert set(results.glob("*")) == before
    logs = logs_of(deployed, job)
    assert {line["task_run_id"] for line in logs} - {None} == {t["id"] for t in failed}


def test_in_processes_too_a_bad_video_fails_alone(deployed: Stack, program: Program, ids: list[str]) -> None:
    bad = spoil(program.folder / "videos")
    (program.folder / "ids.txt").write_text("\n".join(ids))
    job = f"processes-{secrets.token_hex(2)}"
    command = ["run", "--deployment", "video-ingest-processes/default", "--items", "ids.txt", "--batch-size", "60"]
    done = program(*command, *folders(program.folder), "--job-id", job, "--json")
    assert done.code == 1, done.err
    assert (done.json["items"]["succeeded"], done.json["items"]["failed"]) == (55, 5)
    errors = errors_of(JobFolder(f"{program.storage}/{job}"))
    check_named(errors, bad)
    assert errors["v-00043"].startswith("FileNotFoundError: ")


def test_some_hundred_videos_never_pass_the_bounds(deployed: Stack) -> None:
    rows = benchmark.rows(deployed, videos=300, batch_size=100, each={})
    assert len(rows) == 9
    assert not [row for row in rows if row.holds is False and "memory" not in row.measure], markdown(rows)


def test_memory_that_grows_is_told_from_memory_that_does_not() -> None:
    assert benchmark.growth([10.0] * 5 + [100.0] * 15) == 1.0  # a process that has loaded its modules stays as it is
    assert benchmark.growth([100.0 + n for n in range(40)]) > benchmark.GROWTH
    assert benchmark.growth([1.0, 2.0]) == 0.0


def test_a_video_ingested_before_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (video, *_) = library(tmp_path / "videos", 1)
    places = {"source": str(tmp_path / "videos"), "target": str(tmp_path / "out")}
    facts = ingest(video, **places)
    (tmp_path / "out" / f"{video}.jpg").write_bytes(b"as it was")
    assert ingest(video, **places) == facts
    assert (tmp_path / "out" / f"{video}.jpg").read_bytes() == b"as it was"
    # Another content under the same id is another video.
    replace(tmp_path / "videos", video, clip(2))
    assert ingest(video, **places)["frames"] == frames_of(2)
    assert (tmp_path / "out" / f"{video}.jpg").read_bytes() != b"as it was"


def test_an_id_never_leads_out_of_the_folder_of_outputs(tmp_path: Path) -> None:
    library(tmp_path / "videos", 1)
    facts = ingest("../videos/v-00000", source=str(tmp_path / "videos"), target=str(tmp_path / "out"))
    assert facts["frames"] == frames_of(0)
    assert {path.suffix for path in (tmp_path / "videos").iterdir()} == {".mp4"}
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_video_that_breaks_off_is_refused(tmp_path: Path) -> None:
    library(tmp_path / "videos", 1)
    whole = clip(0)
    at = len(whole) // 4
    noise = random.Random(0).randbytes(150)
    replace(tmp_path / "videos", "v-00000", whole[:at] + noise + whole[at + 150 :])
    with pytest.raises(UnreadableVideoError, match=r"v-00000: .* cannot be decoded"):
        ingest("v-00000", source=str(tmp_path / "videos"), target=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
