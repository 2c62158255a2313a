"""`demo`: the main job on real input, with a Prefect of its own: measure the Python files of this installation."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Sequence
from json import dumps as json_text
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from orchestrator.cli.options import OUTPUT, STOP, Json, flag
from orchestrator.cli.progress import LiveProgress
from orchestrator.cli.running import stoppable
from orchestrator.cli.stacks import Database, Redis, ended_by_sigterm
from orchestrator.cli.terminal import give, give_json, say, table
from orchestrator.core.model import ItemOutcome
from orchestrator.core.report import Report
from orchestrator.errors import ConfigurationError
from orchestrator.stack import Stack
from orchestrator.stack.own import OWN
from orchestrator.store import JobFolder, job_folder_url

DEPLOYMENT = "source-metrics/default"
JOB = "demo"
BATCH_SIZE = 150
MAX_IN_FLIGHT = 4
TRIP_AT = "failed >= 3"
SHOWN = 5


def demo(
    *,
    trip: Annotated[bool, flag("--trip", f"Show a kill switch tripping: `{TRIP_AT}`.", group=STOP)] = False,
    files: Annotated[int | None, flag("--files", "At most so many files. Default: all.", group=OUTPUT)] = None,
    keep: Annotated[bool, flag("--keep", "Leave the server and its UI running afterwards.", group=OUTPUT)] = False,
    database: Database = None,
    redis: Redis = None,
    json: Json = False,
) -> int:
    """See it work: start a Prefect of one's own, measure this machine's Python files in batches, show what came out.

    Ends with 0 when the job ended as this demo wants it to: files that are no Python are expected.
    """
    example = example_file()
    say("starting a Prefect server and a worker of our own (about ten seconds) ...")
    home = Path(tempfile.mkdtemp(prefix="orchestrator-demo-"))
    results = home / "jobs"
    with ended_by_sigterm(), Stack(home / "prefect", database=database, redis=redis) as stack:
        _deploy(stack, example)
        say(f"watch it in the Prefect UI: {stack.ui_url}/runs")
        with stack.activated():
            module = _load(example)
            paths = list(module.python_files(files))
            if trip:
                paths = _with_failures(paths, home)
            say(f"measuring {len(paths):,} Python files, {BATCH_SIZE} per child run, {MAX_IN_FLIGHT} at once")
            report = _carry_out(paths, results, TRIP_AT if trip else None)
        folder = JobFolder(job_folder_url(str(results), JOB))
        facts = _facts(report, folder)
        if keep:
            facts.update(ui_url=stack.ui_url, api_url=stack.api_url, stop=f"orchestrator up --stop {stack.home}")
        if json:
            give_json(facts)
        else:
            give(_text(report, facts, trip))
        sys.stdout.flush()
        if keep:
            stack.release()
            say(f"\nThe UI stays at {stack.ui_url}; stop it with: orchestrator up --stop {stack.home}")
    if not keep:
        shutil.rmtree(home / "prefect", ignore_errors=True)
    expected = report.verdict.value == ("tripped" if trip else "completed")
    return 0 if expected else report.exit_code or 1


def _program() -> str:
    """What to type to call this program again, where it is not on the path."""
    return "orchestrator" if shutil.which("orchestrator") else sys.argv[0]


def example_file() -> Path:
    """The demo's batch flow: in a checkout in `deployments/`, in the wheel beside this module."""
    here = Path(__file__).resolve().parent
    for place in (here.parent.parent / "deployments", here / "example"):
        if (place / "source_metrics.py").exists():
            return place / "source_metrics.py"
    raise ConfigurationError("the demo's deployment is missing from this installation; install the package anew")


def _deploy(stack: Stack, example: Path) -> None:
    project = stack.home / "deployments"
    project.mkdir()
    shutil.copy(example, project)
    pool = {"name": stack.pool}
    entries = [
        {"name": "default", "entrypoint": "source_metrics.py:source_metrics", "work_pool": pool},
        *(own.entry(stack.pool) for own in OWN),
    ]
    (project / "prefect.yaml").write_text(json_text({"deployments": entries}))  # JSON is YAML
    stack.deploy(project / "prefect.yaml")


def _load(example: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("source_metrics", example)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _with_failures(paths: Sequence[str], home: Path) -> list[str]:
    """The paths, and files that are no Python amid them: not every installation has the ones that test the parser."""
    broken = home / "no-python"
    broken.mkdir()
    added = []
    for number in range(4):
        (broken / f"broken_{number}.py").write_text("def broken(:\n")
        added.append(str(broken / f"broken_{number}.py"))
    middle = len(paths) // 3
    return [*paths[:middle], *added, *paths[middle:]]


def _carry_out(paths: list[str], results: Path, kill_switch: str | None) -> Report:
    from orchestrator.flows.call import orchestrate_sync

    request: dict[str, Any] = {"kill_switch": kill_switch} if kill_switch else {}
    folder = JobFolder(job_folder_url(str(results), JOB))
    with LiveProgress() as progress:
        return stoppable(
            lambda: orchestrate_sync(
                DEPLOYMENT,
                [{"path": path} for path in paths],
                key="path",  # failures are named by their file,
                select="path",  # and a child gets the path alone
                batch_size=BATCH_SIZE,
                max_in_flight=MAX_IN_FLIGHT,
                fail_if="failed_rate > 0.1 or unknown > 0",
                job_id=JOB,
                storage=str(results),
                on_progress=progress,
                on_failure="return",
                **request,
            ),
            lambda: folder,
        )


def _facts(report: Report, folder: JobFolder) -> dict[str, Any]:
    """Sums over the results, the largest files, the failures; memory is that of the few that are shown."""
    sums = dict.fromkeys(("lines", "code_lines", "comment_lines", "functions", "classes"), 0)
    largest: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for record in folder.outcomes({ItemOutcome.SUCCEEDED, ItemOutcome.FAILED}):
        if record.outcome is ItemOutcome.FAILED:
            failures.append({"item": record.key, "error": f"{record.error_type}: {record.error_text}"})
            continue
        for name in sums:
            sums[name] += record.result[name]
        largest = sorted([*largest, record.result], key=lambda r: -int(r["lines"]))[:SHOWN]
    return {
        "report": report.to_json(),
        "files": report.items.succeeded,
        **sums,
        "largest": largest,
        "failed": failures,
        "results": folder.url,
    }


def _text(report: Report, facts: dict[str, Any], trip: bool) -> str:
    n = report.items
    ran = report.batches.total - report.batches.not_submitted
    lines = [
        "",
        f"{n.succeeded:,} files measured in {ran} child runs, {report.seconds:.0f} s: "
        f"{facts['lines']:,} lines, {facts['code_lines']:,} of them code, {facts['functions']:,} functions, "
        f"{facts['classes']:,} classes",
    ]
    if facts["largest"]:
        rows = [(f"{r['lines']:,}", f"{r['functions']:,}", r["path"]) for r in facts["largest"]]
        lines += ["", "the largest:", table(rows, ("lines", "functions", "file"))]
    if facts["failed"]:
        lines += ["", f"{n.failed} failed:", *(f"  {f['item']}\n    {f['error'][:150]}" for f in facts["failed"][:10])]
    lines += ["", f"{n.total:,} items = {n.succeeded:,} succeeded + {n.failed:,} failed + {n.unknown:,} unknown"
                  f" + {n.not_started:,} not started"]  # fmt: skip
    if trip:
        numbers = ", ".join(f"{name} = {value:g}" for name, value in report.kill_switch.at.items())
        lines += [
            f"the kill switch tripped on {report.kill_switch.clause} ({numbers}): "
            f"{report.batches.not_submitted} batches were not submitted, {report.batches.cancelled} cancelled, "
            f"{n.not_started:,} files not started",
        ]
    where = facts["results"].removesuffix(f"/{JOB}")
    lines += ["", f"results: {facts['results']}", f"  {_program()} results {JOB} --storage {where}"]
    return "\n".join(lines)
