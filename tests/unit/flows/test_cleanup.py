"""What cleanup finds and does, on a simulated Prefect in virtual time, and on real folders."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core.model import Phase, RunId, StopCause, StopMode, idempotency_key
from orchestrator.core.report import Report
from orchestrator.engine.context import ParentRun
from orchestrator.engine.faults import Faults
from orchestrator.engine.gateway import Run, Submission
from orchestrator.engine.memory import MemoryGateway, MemoryLeftovers, SimulatedEngine
from orchestrator.engine.pace import Pace
from orchestrator.engine.simulated import SimulatedRun
from orchestrator.engine.virtual import run as run_virtually
from orchestrator.errors import ConfigurationError, EngineUnavailableError
from orchestrator.flows import cleanup
from orchestrator.flows.calling import Call
from orchestrator.flows.cleanup import clean_up, look_around, pace_of, page, read_rules, summary, to_json
from orchestrator.flows.prepare import Prepared, prepare
from orchestrator.flows.request import make_spec
from orchestrator.flows.spans import parse_span, size_text, span_text
from orchestrator.flows.survey import Act, Finding, Rules, Survey, survey
from orchestrator.flows.sweep import Done, sweep
from orchestrator.settings import Settings
from orchestrator.stack.own import OWN
from orchestrator.store import JobFolder, as_source, job_folder_url
from orchestrator.store.inventory import look
from orchestrator.store.local import LocalStore
from orchestrator.testing import DEPLOYMENT, SimulatedBatches, _run

HOUR, DAY = 3_600.0, 86_400.0
PARENT = RunId("11111111-1111-4111-8111-111111111111")
_numbers = itertools.count()


@dataclass
class World:
    """A simulated Prefect, a storage, and a clock that can be set forward."""

    root: str = field(default_factory=lambda: f"memory://cleanup-{next(_numbers)}")
    faults: Faults | None = None
    later: float = 0.0
    parent: ParentRun | None = None

    def __post_init__(self) -> None:
        batches = SimulatedBatches(lambda item: item, seconds_per_item=5.0)

        async def work(run: SimulatedRun) -> Phase:
            if "batch" in run.parameters:
                return await batches(run)
            await asyncio.sleep(10 * DAY)  # a parent, or somebody else's run
            return Phase.COMPLETED

        self.engine = SimulatedEngine(work, faults=self.faults)
        self.gateway, self.leftovers = MemoryGateway(engine=self.engine), MemoryLeftovers(self.engine)

    def folder(self, job_id: str = "j") -> JobFolder:
        return JobFolder(job_folder_url(self.root, job_id))

    async def prepared(self, job_id: str = "j", items: int = 40, **request: Any) -> Prepared:
        wanted = {"batch_size": 20, "max_in_flight": 2, "job_id": job_id, "storage": self.root, **request}
        spec = make_spec(deployment=DEPLOYMENT, **wanted)
        source = as_source(range(items), storage=self.root)
        return await prepare(spec, source, self.gateway, settings=Settings(), parent=self.parent)

    async def die_after(self, seconds: float, job_id: str = "j", **request: Any) -> None:
        """A job whose parent works for so long and is gone from then on; its children are not."""
        parent = asyncio.ensure_future(self.report(await self.prepared(job_id, **request)))
        await asyncio.sleep(seconds)
        parent.cancel()
        await asyncio.gather(parent, return_exceptions=True)

    async def finish(self, job_id: str = "j", **request: Any) -> Report:
        return await self.report(await self.prepared(job_id, **request))

    async def report(self, prepared: Prepared) -> Report:
        return (await _run(prepared, self.engine, self.gateway, None, None)).report

    def start(self, name: str, tags: tuple[str, ...] = (), key: str | None = None) -> RunId:
        """A run that is no child of a job."""
        deployment = self.engine.deploy(f"{name}/somebody")
        submission = Submission(key or f"{name}-{next(_numbers)}", deployment, name, {}, tags)
        return self.engine.create(submission).id

    async def left_over(self, job_id: str = "j") -> Run:
        """A child run of a job that runs although the job is over."""
        key = idempotency_key(job_id, self.folder(job_id).read_job().nonce, 0, 1)
        id_ = self.start("left", ("orchestrator", f"job:{job_id}"), key)
        while (run := self.engine.read(id_)) is None or run.phase is not Phase.RUNNING:
            await asyncio.sleep(0.1)
        return run

    async def start_parent(self) -> None:
        """From now on jobs are started from a flow run."""
        run = self.start("crimson-otter")
        self.parent = ParentRun(run, "crimson-otter", "nightly", 1, None, None, None)
        while (record := self.engine.read(run)) is None or record.phase is not Phase.RUNNING:
            await asyncio.sleep(0.1)

    async def look(self, **rules: Any) -> Survey:
        return await survey(
            self.root, Rules(**rules), self.gateway, self.leftovers, now=lambda: time.time() + self.later
        )  # fmt: skip

    async def clean(self, **rules: Any) -> list[Done]:
        return await self.sweep(await self.look(**rules))

    async def sweep(self, found: Survey) -> list[Done]:
        return await sweep(
            found, self.gateway, self.leftovers, settings=Settings(), run=self.report, who="cleanup, a test"
        )  # fmt: skip

    def unended(self) -> list[str]:
        return [run.name for run in self.engine.runs() if not run.phase.is_terminal]


def virtually(story: Callable[[World], Coroutine[Any, Any, None]], **world: Any) -> None:
    async def whole() -> None:
        it = World(**world)
        try:
            await story(it)
        finally:
            await it.engine.shut_down()

    run_virtually(whole())


def told(survey: Survey) -> list[tuple[str, str]]:
    return [(finding.act.value, finding.subject) for finding in survey.findings]


# ---------------------------------------------------------------------- jobs whose parent is over


def test_a_job_whose_parent_died_is_listed_then_settled_and_nothing_is_left_running() -> None:
    async def story(world: World) -> None:
        await world.die_after(22.0)
        assert world.unended()
        world.later = 3 * HOUR
        found = await world.look()
        assert told(found) == [("settle", "job j")]
        (finding,) = found.findings
        assert "gave its last sign of life 3 h ago; 2 child runs not over" in finding.why
        assert world.folder().read_stop() is None
        assert world.unended(), "looking touches nothing"

        (done,) = await world.sweep(found)
        assert done.ok, done.said
        assert world.unended() == []
        stop, data = world.folder().read_stop(), world.folder().read_report()
        assert stop is not None
        assert (stop.mode, stop.cause) == (StopMode.CANCEL, StopCause.CLEANED_UP)
        assert stop.reason == "cleanup: its parent gave its last sign of life 3 h ago"
        report = Report.from_json(data or {})
        n = report.items
        assert report.verdict.value == "cancelled"
        assert n.succeeded + n.failed + n.unknown + n.not_started == n.total == 40
        assert n.succeeded > 0
        assert (await world.look()).findings == ()

    virtually(story)


def test_a_job_whose_parent_run_ended_is_told_and_left_until_the_hour_is_over() -> None:
    async def story(world: World) -> None:
        await world.start_parent()
        await world.die_after(22.0)
        assert world.parent is not None
        world.engine.crash(world.parent.id)
        world.later = HOUR / 2
        found = await world.look()
        assert told(found) == [("leave", "job j")]
        assert found.findings[0].why == (
            "its parent run crimson-otter ended (Crashed) 30 min ago; `orchestrator resume j` goes on with it, "
            "cleanup settles it 60 min after that"
        )
        world.later = 2 * HOUR
        (done,) = await world.clean()
        assert done.finding.why.startswith("its parent run crimson-otter ended (Crashed) 2 h ago")
        stop = world.folder().read_stop()
        assert stop is not None
        assert stop.reason == "cleanup: its parent run ended 2 h ago"
        assert (world.parent.id, "job-j") in world.engine.pages, "its page says how the job ended"

    virtually(story)


def test_the_job_of_a_deleted_parent_run_is_settled() -> None:
    async def story(world: World) -> None:
        await world.start_parent()
        await world.die_after(22.0)
        assert world.parent is not None
        world.engine.delete(world.parent.id)
        world.later = 2 * HOUR
        (done,) = await world.clean()
        assert done.ok
        assert "its parent run was deleted" in done.finding.why

    virtually(story)


@pytest.mark.parametrize("phase", [Phase.SCHEDULED, Phase.PAUSED])
def test_a_job_whose_parent_run_will_run_again_is_left_alone(phase: Phase) -> None:
    async def story(world: World) -> None:
        await world.start_parent()
        await world.die_after(22.0)
        assert world.parent is not None
        world.engine.paused = True
        world.engine.force(world.parent.id, phase)
        world.later = 30 * DAY
        assert (await world.look()).findings == ()

    virtually(story)


def test_a_parent_run_that_is_only_said_to_run_is_believed_dead_after_its_silence() -> None:
    async def story(world: World) -> None:
        await world.start_parent()
        await world.die_after(22.0)
        world.later = HOUR / 2
        assert told(await world.look()) == [("leave", "job j")]
        world.later = 2 * HOUR
        found = await world.look()
        assert told(found) == [("settle", "job j")]
        assert "its parent run crimson-otter, said to be Running, gave its last sign of life 2 h ago" in (
            found.findings[0].why
        )

    virtually(story)


def test_a_parent_that_gives_a_sign_of_life_while_it_is_watched_keeps_its_job() -> None:
    async def story(world: World) -> None:
        await world.start_parent()
        prepared = await world.prepared()
        prepared.heart.beat()
        assert world.parent is not None
        world.engine.crash(world.parent.id)  # so Prefect says
        world.later = DAY

        async def live() -> None:
            while True:
                await asyncio.sleep(9.0)
                prepared.heart.beat()

        living = asyncio.ensure_future(live())
        assert (await world.look()).findings == ()
        living.cancel()
        assert told(await world.look()) == [("settle", "job j")]

    virtually(story)


def test_children_that_were_abandoned_on_purpose_finish_before_their_job_is_settled() -> None:
    async def story(world: World) -> None:
        await world.die_after(22.0, items=60, on_parent_cancelled="abandon")
        world.later = 2 * HOUR
        found = await world.look(settle_after=0)
        assert told(found) == [("leave", "job j")]
        assert "2 child runs finish their batch, as was asked for" in found.findings[0].why
        assert await world.sweep(found) == []
        while world.unended():
            await asyncio.sleep(1.0)
        (done,) = await world.clean()
        assert done.ok, done.said
        report = Report.from_json(world.folder().read_report() or {})
        assert (report.items.succeeded, report.items.not_started) == (40, 20)
        assert {run.phase for run in world.engine.runs()} == {Phase.COMPLETED}

    virtually(story)


def test_a_job_whose_deployment_is_gone_is_settled_too() -> None:
    async def story(world: World) -> None:
        await world.die_after(22.0)
        world.engine.deployments.clear()
        world.later = 2 * HOUR
        (done,) = await world.clean()
        assert done.ok, done.said
        assert world.folder().read_report() is not None
        assert sum(o.outcome.value == "succeeded" for o in world.folder().outcomes()) > 0

    virtually(story)


@pytest.mark.parametrize(("seconds", "claimed"), [(0.0, False), (0.5, True), (1.0, True)])
def test_a_cleanup_killed_while_it_settles_is_finished_by_the_next(seconds: float, claimed: bool) -> None:
    async def story(world: World) -> None:
        await world.die_after(22.0, items=200, max_in_flight=4)
        world.later = 2 * HOUR
        work = asyncio.ensure_future(world.sweep(await world.look()))
        await asyncio.sleep(seconds)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert world.folder().read_report() is None
        assert (world.folder().newest_epoch() > 1) is claimed
        if claimed:
            world.later = 90  # a cleanup that died is not waited for an hour again
        (done,) = await world.clean()
        assert done.ok, done.said
        assert world.unended() == []
        n = Report.from_json(world.folder().read_report() or {}).items
        assert n.succeeded + n.failed + n.unknown + n.not_started == n.total == 200

    virtually(story)


def test_of_two_cleanups_at_once_one_settles_and_the_other_leaves_it_alone() -> None:
    async def story(world: World) -> None:
        await world.die_after(22.0)
        world.later = 2 * HOUR
        both = await asyncio.gather(world.look(), world.look())
        done = await asyncio.gather(*(world.sweep(found) for found in both))
        assert all(one.ok for (one,) in done)
        assert sorted(one.said.split(":")[0] for (one,) in done) == ["left alone", "settled"]
        assert world.unended() == []
        assert world.folder().newest_epoch() == 2

    virtually(story)


def test_a_job_that_is_resumed_after_it_was_listed_is_left_to_its_new_parent() -> None:
    async def story(world: World) -> None:
        await world.die_after(22.0)
        world.later = 2 * HOUR
        found = await world.look()
        resumed = asyncio.ensure_future(world.finish())
        await asyncio.sleep(25.0)
        (done,) = await world.sweep(found)
        assert done.said.startswith("left alone")
        assert (await resumed).items.succeeded == 40

    virtually(story)


# ---------------------------------------------------------------------- child runs that are left


def test_a_child_run_that_outlived_its_job_is_asked_to_end_and_never_forced() -> None:
    async def story(world: World) -> None:
        await world.finish(items=20)
        run = await world.left_over()
        world.later = 10.0
        found = await world.look()
        assert told(found) == [("cancel", f"run {run.name} (Running)")]
        assert found.findings[0].why == "its job j is over for 10 s"
        world.later = 5 * 60
        found = await world.look()
        assert found.findings[0].why == "its job j is over for 5 min; its process seems to be gone"
        (done,) = await world.sweep(found)
        assert (done.ok, done.said) == (True, "cancel requested")
        left = world.engine.read(run.id)
        assert left is not None
        assert left.phase is Phase.CANCELLING
        again = await world.look()
        assert told(again) == [("leave", f"run {run.name} (Cancelling)")]
        assert "Prefect ends it by its own timeout" in again.findings[0].why

    virtually(story)


def test_runs_that_only_carry_our_tags_are_told_and_left_alone() -> None:
    async def story(world: World) -> None:
        await world.finish(items=20)
        nonce = world.folder().read_job().nonce
        forged = [
            world.start("no-job", ("orchestrator", "job:other")),
            world.start("no-key", ("orchestrator", "job:j")),
            world.start("wrong-nonce", ("orchestrator", "job:j"), f"j/{nonce[::-1]}/0/0"),
            world.start("no-such-batch", ("orchestrator", "job:j"), f"j/{nonce}/1/0"),
            world.start("no-number", ("orchestrator", "job:j"), f"j/{nonce}/../0"),
            world.start("longer", ("orchestrator", "job:j"), f"j/{nonce}/0/0/0"),
        ]
        await asyncio.sleep(60)
        world.later = DAY
        found = await world.look()
        assert {finding.act for finding in found.findings} == {Act.LEAVE}
        assert len(found.findings) == len(forged)
        assert all(finding.why.startswith("not ours: it carries our tags") for finding in found.findings)
        assert await world.sweep(found) == []
        assert {record.phase for id_ in forged if (record := world.engine.read(id_))} == {Phase.RUNNING}

    virtually(story)


# ---------------------------------------------------------------------- folders


def aged(root: Path, days: float) -> None:
    """As if everything in there had been written so long ago."""
    at = time.time() - days * DAY
    for folder, _, names in os.walk(root):
        for name in names:
            os.utime(Path(folder) / name, (at, at))


def on_disk(tmp_path: Path, story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    virtually(story, root=str(tmp_path))


def test_folders_of_jobs_that_are_over_for_long_are_removed_and_others_stay(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for job_id in ("old", "young"):
            await world.finish(job_id, items=20)
        aged(tmp_path / "old", 31)
        aged(tmp_path / "young", 29)
        found = await world.look()
        assert told(found) == [("remove", "folder of job old")]
        assert found.findings[0].why == "over for 31 days"
        assert (found.findings[0].size or 0) > 100
        (done,) = await world.sweep(found)
        assert done.said.startswith("removed, ")
        assert [path.name for path in tmp_path.iterdir()] == ["young"]
        assert await world.clean() == []
        assert told(await world.look(older_than=None)) == []
        assert told(await world.look(older_than=0)) == [("remove", "folder of job young")]

    on_disk(tmp_path, story)


def test_a_job_is_kept_while_another_that_is_not_over_works_on_its_items(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.finish("first", items=20)
        source = as_source("job:first?outcome=succeeded", storage=world.root)
        spec = make_spec(deployment=DEPLOYMENT, job_id="second", storage=world.root)
        second = await prepare(spec, source, world.gateway, settings=Settings())
        aged(tmp_path / "first", 31)
        found = await world.look()
        assert told(found) == [("leave", "job first")]
        assert found.findings[0].why == "job second, which is not over, works on its items"
        await world.report(second)
        assert told(await world.look()) == [("remove", "folder of job first")]

    on_disk(tmp_path, story)


def test_what_is_damaged_or_not_ours_is_never_touched(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.finish("whole", items=20)
        elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
        os.rename(tmp_path / "whole", elsewhere)
        for name in ("torn", "newer", "copy", "lost"):
            shutil.copytree(elsewhere, tmp_path / name)
        (tmp_path / "torn" / "job.json").write_text('{"format": 1, "job_id"')
        (tmp_path / "newer" / "job.json").write_text('{"format": 99}')
        job = json.loads((tmp_path / "lost" / "job.json").read_text())
        (tmp_path / "lost" / "job.json").write_text(json.dumps(job | {"job_id": "lost"}))
        (tmp_path / "lost" / "report.json").write_text("[]")
        (tmp_path / "photos" / "items" / "2024").mkdir(parents=True)
        (tmp_path / "photos" / "items" / "2024" / "part-1.jpg").write_text("a photo")
        (tmp_path / "mixed" / "items" / "n").mkdir(parents=True)
        (tmp_path / "mixed" / "items" / "n" / "part-00000.jsonl").write_text("[null,1]\n")
        (tmp_path / "mixed" / "thesis.txt").write_text("mine")
        (tmp_path / "linked").symlink_to(elsewhere)
        (tmp_path / "loose.json").write_text("{}")
        aged(tmp_path, 400)
        aged(elsewhere, 400)
        before = {path: path.stat().st_mtime for top in (tmp_path, elsewhere) for path in sorted(top.rglob("*"))}
        found = await world.look(older_than=0, settle_after=0)
        assert [(f.act, f.subject) for f in found.findings] == [
            (Act.LEAVE, "folder copy"),
            (Act.LEAVE, "folder newer"),
            (Act.LEAVE, "folder torn"),
            (Act.LEAVE, "job lost"),
        ]
        why = {finding.subject: finding.why for finding in found.findings}
        assert "is that of job 'whole': a copy?" in why["folder copy"]
        assert "has format 99" in why["folder newer"]
        assert await world.sweep(found) == []
        after = {path: path.stat().st_mtime for top in (tmp_path, elsewhere) for path in sorted(top.rglob("*"))}
        assert after == before

    on_disk(tmp_path, story)


def test_what_was_staged_or_removed_only_in_part_goes_after_a_day(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for job_id in ("staged", "half"):
            await world.finish(job_id, items=20)
            (tmp_path / job_id / "job.json").unlink()
        aged(tmp_path / "staged", 0.9)
        aged(tmp_path / "half", 1.1)
        found = await world.look()
        assert told(found) == [("remove", "folder half")]
        await world.sweep(found)
        assert [path.name for path in tmp_path.iterdir()] == ["staged"]

    on_disk(tmp_path, story)


def test_a_removal_that_is_killed_half_way_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    async def story(world: World) -> None:
        await world.finish("old", items=100)
        aged(tmp_path, 31)
        objects = sum(len(names) for _, _, names in os.walk(tmp_path))
        delete, left = LocalStore.delete, [0]

        def dying(store: LocalStore, name: str) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            delete(store, name)

        for number in (1, 3):
            found = await world.look()
            assert [finding.act for finding in found.findings] == [Act.REMOVE]
            with monkeypatch.context() as patch:
                patch.setattr(LocalStore, "delete", dying)
                left[0] = number
                with pytest.raises(Killed):
                    await world.sweep(found)
            assert not (tmp_path / "old" / "job.json").exists(), "from the first moment on it is no job"
        assert sum(len(names) for _, _, names in os.walk(tmp_path)) == objects - 3, (
            "the first of the second three was gone"
        )
        (done,) = await world.clean()
        assert done.ok
        assert list(tmp_path.iterdir()) == []

    on_disk(tmp_path, story)


def test_a_folder_that_changed_after_it_was_listed_is_left_alone(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.finish("again", items=20)
        aged(tmp_path, 31)
        found = await world.look()
        world.folder("again").delete()
        await world.finish("again", items=30)
        (done,) = await world.sweep(found)
        assert done.said == "left alone: it changed meanwhile"
        assert world.folder("again").read_job().total == 30

    on_disk(tmp_path, story)


def test_the_folder_of_a_job_with_a_living_child_run_stays_until_that_has_ended(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.finish("old", items=20)
        await world.left_over("old")
        aged(tmp_path, 31)
        assert [finding.act for finding in (await world.look()).findings] == [Act.CANCEL]

    on_disk(tmp_path, story)


def test_without_prefect_only_old_folders_are_offered(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.finish("old", items=20)
        await world.die_after(22.0, "dead")
        aged(tmp_path, 31)

        class Away(MemoryGateway):
            async def read_runs(self, ids: Any) -> Any:
                raise EngineUnavailableError("Prefect's API cannot be reached (simulated).")

        found = await survey(str(tmp_path), Rules(), Away(engine=world.engine), world.leftovers)
        assert found.away == "Prefect's API cannot be reached (simulated)."
        assert told(found) == [("remove", "folder of job old")]

    on_disk(tmp_path, story)


def test_trouble_with_one_folder_keeps_no_other_from_being_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        for job_id in ("one", "two"):
            await world.finish(job_id, items=20)
        aged(tmp_path, 31)
        delete = LocalStore.delete

        def failing(store: LocalStore, name: str) -> None:
            if store.url.endswith("one"):
                raise OSError(5, "Input/output error")
            delete(store, name)

        monkeypatch.setattr(LocalStore, "delete", failing)
        done = {d.finding.job_id: d for d in await world.clean()}
        assert not done["one"].ok
        assert "Input/output error" in done["one"].said
        assert done["two"].ok

    on_disk(tmp_path, story)


def test_a_storage_that_does_not_exist_yet_holds_nothing(tmp_path: Path) -> None:
    assert look(str(tmp_path / "nowhere")) == []


# ---------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12h", 12 * HOUR), ("30d", 30 * DAY), ("8w", 56 * DAY), (" 90 S ", 90), ("0", 0), ("1.5d", 1.5 * DAY)],
)
def test_a_span_of_time_is_read(text: str, seconds: float) -> None:
    assert parse_span(text, "older_than") == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "30 days", "1e9d", "nan", "１d"])
def test_what_is_no_span_of_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"older_than: .* is no span of time; write 12h, 30d or 8w"):
        parse_span(text, "older_than")


def test_an_age_of_nothing_must_be_meant() -> None:
    with pytest.raises(ConfigurationError, match="removes the folder of every job that is over"):
        read_rules("0d", "1h", Settings())
    assert read_rules("0d", "1h", Settings(), allow_all=True).older_than == 0
    assert read_rules("never", "0", Settings()) == Rules(None, 0.0, 5.0)


def test_spans_and_sizes_are_written_in_the_unit_that_fits() -> None:
    assert [span_text(s) for s in (-5, 40, 600, 7_200, 31 * DAY)] == ["0 s", "40 s", "10 min", "2 h", "31 days"]
    assert [size_text(n) for n in (12, 3_400, 5_600_000, 7_800_000_000)] == ["12 B", "3.4 kB", "5.6 MB", "7.8 GB"]


def test_the_page_shows_names_as_text_and_says_what_was_done() -> None:
    finding = Finding(Act.REMOVE, "folder of job x|y [a](http://evil)", "over", "x", 5.0, 10)
    found = Survey("/jobs", (finding,), 1, None)
    text = page(found, [Done(finding, True, "removed, 10 B")], "/jobs")
    assert "x\\|y \\[a\\](http://evil)" in text
    assert text.endswith("| removed, 10 B |")
    assert summary(found) == "1 job; 1 to remove"
    assert to_json(found, None)["findings"][0]["done"] is None


def test_the_projects_file_registers_the_same_deployments_as_the_package() -> None:
    entries = yaml.safe_load((Path(__file__).parents[3] / "prefect.yaml").read_text())["deployments"]
    ours = {entry["entrypoint"]: entry for entry in entries}
    for own in OWN:
        assert ours[own.entrypoint] == own.entry("local")


# ---------------------------------------------------------------- what it asks of Prefect


def test_all_that_a_cleanup_asks_of_prefect_keeps_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, used = Settings(max_requests_per_minute=60), list[Pace]()
    nothing = Survey(root="memory://nowhere", folders=0, findings=[], away=None)

    async def surveyed(root: str, rules: Rules, gateway: Any, leftovers: Any) -> Survey:
        used.extend([gateway.pace, leftovers._connection.pace])
        return nothing

    async def swept(found: Survey, gateway: Any, leftovers: Any, *, run: Any, **more: Any) -> list[Done]:
        used.extend([gateway.pace, leftovers._connection.pace])
        await asyncio.gather(run(None), run(None))
        return []

    async def run_async(call: Call, prepared: Any) -> None:
        door = await call.open_gateway()
        used.append(door.pace)

    monkeypatch.setattr(cleanup, "survey", surveyed)
    monkeypatch.setattr(cleanup, "sweep", swept)
    monkeypatch.setattr(cleanup, "run_async", run_async)
    pace = pace_of(settings)
    asyncio.run(look_around("memory://nowhere", Rules(), settings, pace))
    assert asyncio.run(clean_up(nothing, settings, pace)) == []
    assert pace.per_minute == 60
    assert len(used) == 6
    assert all(each is pace for each in used)
