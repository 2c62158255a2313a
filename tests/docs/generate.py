"""The parts of the pages that are made from the code: `python -m tests.docs.generate` writes them anew.

A part stands between `<!-- generated: name -->` and `<!-- end of generated part -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tests.docs.pages import ROOT, pages

_PART = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end of generated part -->)", re.DOTALL)


def state_diagram() -> str:
    """The machine's table as a diagram."""
    from orchestrator.core.machine.table import diagram

    return f"```mermaid\n{diagram()}\n```"


def stage_table() -> str:
    """Each row of the machine's table, with its reason."""
    from orchestrator.core.machine.table import TABLE, TIMED, Stage

    def names(stages: frozenset[Stage]) -> str:
        return ", ".join(s.value for s in Stage if s in stages)

    rows = [(s.value, f"`{e.__name__}`", names(row.to), row.why) for (s, e), row in TABLE.items()]
    rows += [(s.value, "(time or a stop)", names(row.to), row.why) for s, row in TIMED.items()]
    order = [s.value for s in Stage]
    rows.sort(key=lambda row: order.index(row[0]))
    return _table(("stage", "on", "may become", "because"), rows)


def settings_table() -> str:
    """Every setting, its environment variable and default."""
    from orchestrator.settings import Settings

    prefix = Settings.model_config["env_prefix"]
    rows = [
        (f"`{prefix}{name.upper()}`", _default(field.default), str(field.description))
        for name, field in Settings.model_fields.items()
    ]
    return _table(("environment variable", "default", "meaning"), rows)


def job_table() -> str:
    """Every parameter of a job: the form's top fields first, then those of its group `advanced`."""
    from orchestrator.flows.parent import orchestrate_flow
    from orchestrator.flows.request import Advanced

    schema: Mapping[str, Any] = orchestrate_flow.parameters.model_dump()["properties"]
    rows = []
    for name, field in schema.items():
        if name == "advanced":
            continue
        default = "required" if name in ("deployment", "items") else _default(field.get("default"))
        rows.append((f"`{name}`", default, str(field["description"])))
    rows += [
        (f"`{name}`", _default(field.get_default(call_default_factory=True)), str(field.description))
        for name, field in Advanced.model_fields.items()
    ]
    return _table(("parameter", "default", "meaning"), rows)


def command_table() -> str:
    """Every command and what it is for."""
    from orchestrator.cli.app import make_app

    app, rows = make_app(), []
    for name in (n for n in app if not n.startswith("-")):
        help_text = " ".join((app[name].help or "").split("\n\n")[0].split())
        rows.append((f"`orchestrator {name}`", help_text))
    return _table(("command", "what it does"), rows)


def error_table() -> str:
    """Every error that the package exports, most general last, with the exit code of the command line."""
    import orchestrator
    from orchestrator.errors import OrchestratorError

    found: list[type[OrchestratorError]] = []
    for name in orchestrator.__all__:
        value = getattr(orchestrator, name)
        if isinstance(value, type) and issubclass(value, OrchestratorError):
            found.append(value)
    found.sort(key=lambda e: (e.exit_code, -len(e.__mro__), e.__name__))
    rows = [
        (f"`{e.__name__}`", f"`{e.__mro__[1].__name__}`", (e.__doc__ or "").split("\n")[0], str(e.exit_code))
        for e in found
    ]
    return _table(("error", "is a", "meaning", "exit code"), rows)


def verdict_table() -> str:
    """Every way a job can end, with the parent's state and the exit code."""
    from orchestrator.core.model import Verdict
    from orchestrator.core.report import EXIT_CODES, BatchCounts, ItemCounts, KillSwitchReport, Report
    from orchestrator.flows.parent import final_state

    meaning = {
        Verdict.COMPLETED: "every batch is over, and `fail_if` does not hold",
        Verdict.ENOUGH: "`enough_when` became true",
        Verdict.TRIPPED: "the kill switch tripped",
        Verdict.CANCELLED: "`orchestrator stop`, Ctrl-C, or the parent run was cancelled",
        Verdict.FAILED: "it could not go on: deployment deleted, storage gone",
    }

    def row(verdict: Verdict, by_rule: bool, words: str) -> tuple[str, ...]:
        n, b = ItemCounts(1, 1, 0, 0, 0), BatchCounts(1, 1, 0, 0, 0, 0, 0)
        report = Report("job", verdict, by_rule, "", "f/d", 1.0, n, b, KillSwitchReport(None))
        state = final_state(report)
        kind = state.type.value.title()
        shown = f"{kind}, named `{state.name}`" if state.name and state.name != kind else kind
        return (f"`{verdict.value}`", words, shown, str(report.exit_code))

    rows = [row(verdict, False, meaning[verdict]) for verdict in EXIT_CODES]
    rows.insert(1, row(Verdict.COMPLETED, True, "every batch is over, and `fail_if` holds (`failed_by_rule`)"))
    return _table(("verdict", "when", "state of the parent run", "exit code"), rows)


def ending_table() -> str:
    """Every way in which a parent can end before its job."""
    from tests.docs.ending import rows

    return _table(("the parent's end", "asked for", "child runs", "settled by", "all settled within"), rows())


def example(path: str, *, whole_path: bool = False) -> Callable[[], str]:
    """A deployed example's code, as a block that a reader of the page saves under its name (or its whole path)."""
    name = path if whole_path else path.rpartition("/")[2]
    return lambda: f"```python\n# {name}\n{(ROOT / path).read_text()}```"


def deployments_of(folder: str) -> Callable[[], str]:
    """The paragraphs of prefect.yaml that deploy what lies in a folder, as a prefect.yaml of their own."""

    def block() -> str:
        paragraphs = (ROOT / "prefect.yaml").read_text().rstrip().split("\n\n")
        ours = "\n\n".join(p for p in paragraphs if f"entrypoint: {folder}/" in p)
        return f"```yaml\n# prefect.yaml\ndeployments:\n{ours}\n```"

    return block


def docker_variables() -> str:
    """Every job variable of our docker pools, its default and meaning."""
    from orchestrator.stack.containers import docker_template

    first = ("image", "command", "mem_limit", "volumes", "user", "env")
    known: Mapping[str, Any] = docker_template()["variables"]["properties"]
    names = [*first, *(name for name in known if name not in first)]
    rows = [(f"`{name}`", _default(known[name].get("default")), str(known[name]["description"])) for name in names]
    return _table(("job variable", "default", "meaning"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "task-groups-code": example("deployments/task_groups.py"),
    "existing-code": example("deployments/existing.py"),
    "records-cleaning": example("deployments/records/cleaning.py", whole_path=True),
    "records-warehouse": example("deployments/records/warehouse.py", whole_path=True),
    "records-tasks": example("deployments/records/tasks.py", whole_path=True),
    "records-flows": example("deployments/records/flows.py", whole_path=True),
    "records-source": example("deployments/services/pages.py", whole_path=True),
    "records-deployments": deployments_of("deployments/records"),
    "parent-ends": ending_table,
    "video-code": example("deployments/video_ingest.py"),
    "images-code": example("deployments/image_batch.py", whole_path=True),
    "images-service": example("deployments/services/thumbnails.py", whole_path=True),
    "queue-code": example("deployments/queue_batch.py"),
    "docker-variables": docker_variables,
    "state-diagram": state_diagram,
    "stages": stage_table,
    "settings": settings_table,
    "job-parameters": job_table,
    "commands": command_table,
    "verdicts": verdict_table,
    "errors": error_table,
}


def pool_template() -> str:
    """The base job template of docker work pools, for those who create theirs by hand."""
    from orchestrator.stack.containers import docker_template

    return json.dumps(docker_template(), indent=2) + "\n"


FILES: dict[str, Callable[[], str]] = {"docker/base-job-template.json": pool_template}
"""Whole files that are made from the code."""


def renewed(text: str) -> str:
    """The page with its generated parts as they should be.

    Raises:
        KeyError: a part has a name that nothing generates.
    """
    return _PART.sub(lambda m: f"{m[1]}{PARTS[m['name']]()}\n{m[3]}", text)


def _default(value: object) -> str:
    if value is None or value in ((), [], {}, ""):
        return "-"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


if __name__ == "__main__":
    for page in pages():
        before = page.read_text()
        if (after := renewed(before)) != before:
            page.write_text(after)
            sys.stdout.write(f"wrote {page.name}\n")
    for name, content in FILES.items():
        (ROOT / name).write_text(content())
