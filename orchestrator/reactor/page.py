"""The live page on the parent run: one markdown text, from the first child to the report."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.core.machine import State
from orchestrator.core.model import BatchOutcome, Failure
from orchestrator.core.report import ErrorCluster, Report
from orchestrator.reactor.children import Child
from orchestrator.reactor.view import JobView

Links = Sequence[tuple[Child, str, str | None]]
"""Child runs to name on the page, each with its name and its own page's address."""

First = tuple[str, str | None]
"""The job whose items are run again, and its own page's address."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>~&$])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_BAR = 20


def escape(text: str, limit: int = 300) -> str:
    """Text from items and errors, made harmless inside markdown: one line, no markup, cut.

    A web address in it may become a link, as anywhere in Prefect's UI: one that shows where it leads.
    """
    flat = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    cut = flat if len(flat) <= limit else flat[: limit - 1] + "…"
    return _SPECIAL.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), cut)


def code(text: str) -> str:
    """Text as code; as plain text where it holds what ends code."""
    return escape(text) if "`" in text or not text.isprintable() else f"`{text}`"


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def page_key(job_id: str) -> str:
    """Artifact keys allow lower-case letters, digits and dashes. Source: prefect artifacts, 3.8.8."""
    return "job-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in job_id.lower())


def live_page(
    view: JobView, deployment: str, max_in_flight: int, storage: str, children: Links = (), first: First | None = None
) -> str:
    """The page while the job goes on."""
    done = view.settled / view.total if view.total else 1.0
    full = int(done * _BAR)
    # Rounded down: 100 % is said when all are over.
    lines = [
        f"# {view.settled:,} of {view.total:,} items over",
        "",
        f"`{'█' * full}{'░' * (_BAR - full)}` {int(done * 100)} %",
        "",
    ]
    if view.stopping:
        how = "letting child runs finish" if view.draining else "cancelling child runs"
        lines += [f"**Stopping** ({how}): {escape(view.stopping)}", ""]
    if view.paused:
        lines += [f"**Paused** {escape(view.paused)}", ""]
    if view.waiting_for:
        lines += [f"**Waiting:** {escape(view.waiting_for)}", ""]
    rate = f"{view.rate:,.1f} items/s" if view.rate is not None else "-"
    left = duration(view.eta_seconds) if view.eta_seconds is not None else "-"
    flying = ", ".join(f"{n} {phase}" for phase, n in sorted(view.in_flight.items())) or "none"
    lines += [
        "| succeeded | failed | unknown | rate | time left | elapsed |",
        "|---|---|---|---|---|---|",
        f"| {view.succeeded:,} | {view.failed:,} | {view.unknown:,} | {rate} | {left} | {duration(view.seconds)} |",
        "",
        f"Batches: {view.batches_settled:,} of {view.batches_total:,} over. Child runs in flight: {flying}, "
        f"at most {max_in_flight} at once.",
        "",
    ]
    lines += [f"* {escape(change)}" for change in view.changes] + ([""] if view.changes else [])
    lines += _failures(view.errors, view.first_failure)
    lines += _links(children)
    lines += _again(first)
    return "\n".join([*lines, *_where(view.job_id, deployment, storage)])


def report_page(report: Report, state: State | None = None, children: Links = (), first: First | None = None) -> str:
    """The page once the job is over."""
    n, over = report.items, report.batches
    title = "Failed" if report.failed_by_rule else report.verdict.value.capitalize()
    outcomes = [
        f"{getattr(over, o.value):,} {o.value.replace('_', ' ')}" for o in BatchOutcome if getattr(over, o.value)
    ]
    lines = [
        f"# {title}: {escape(report.headline)}",
        "",
        "| items | succeeded | failed | unknown | not started |",
        "|---|---|---|---|---|",
        f"| {n.total:,} | {n.succeeded:,} | {n.failed:,} | {n.unknown:,} | {n.not_started:,} |",
        "",
    ]
    if outcomes:
        lines += [
            f"Batches: {', '.join(outcomes)}, of {over.total:,}. At most {_runs(report.max_in_flight_seen)} at once, "
            f"{duration(report.seconds)} in all.",
            "",
        ]
    switch = report.kill_switch
    if switch.tripped and switch.clause:
        numbers = ", ".join(f"{escape(k)} = {v:g}" for k, v in switch.at.items())
        lines += [f"**Kill switch:** {escape(switch.clause)}" + (f" ({numbers})" if numbers else ""), ""]
    lines += _failures(report.errors, switch.first_failure)
    if state is not None:
        lines += _unconfirmed(state)
    lines += _links(children)
    lines += [f"* {escape(note)}" for note in report.notes] + ([""] if report.notes else [])
    lines += _again(first)
    if n.total > n.succeeded:
        left = code(f"job:{report.job_id}?outcome=failed,unknown,not_started")
        lines += [
            f"To run what is left, start a job with the items {left}; in the form of the orchestrate deployment: "
            "*Left by a job*.",
            "",
        ]
    return "\n".join([*lines, *_where(report.job_id, report.deployment, report.storage)])


def _runs(count: int) -> str:
    return f"{count:,} child run" if count == 1 else f"{count:,} child runs"


def _where(job_id: str, deployment: str, storage: str) -> list[str]:
    return [
        f"Job {code(job_id)} over {code(deployment)}. Its results and failures, item by item: "
        f"{code(f'orchestrator results {job_id}')}, or the files in {code(storage)}."
    ]


def _links(children: Links) -> list[str]:
    if not children:
        return []
    rows = []
    for child, name, url in children:
        label = f"[{escape(name)}]({url})" if url else f"{escape(name)} ({child.run})"
        took = f", {duration(child.seconds)}" if child.seconds is not None else ""
        rows.append(f"| {label} | {child.what}{took} |")
    return ["| child run | why it is named here |", "|---|---|", *rows, ""]


def _again(first: First | None) -> list[str]:
    if first is None:
        return []
    job_id, url = first
    label = f"[{escape(job_id)}]({url})" if url else code(job_id)
    return [f"Runs again what job {label} left; {code(f'orchestrator report {job_id} --chain')} sums up both.", ""]


def _failures(errors: Sequence[ErrorCluster], first: Failure | None) -> list[str]:
    lines: list[str] = []
    if first is not None:
        what = f"{escape(first.type)}: {escape(first.text)}"
        label = f" ({escape(first.label, 80)})" if first.label else ""
        lines += [f"**First failure:** item {first.index}{label}: {what}", ""]
    if errors:
        lines += ["| error | items | for example |", "|---|---|---|"]
        lines += [f"| {escape(e.type)} | {e.count:,} | {escape(e.example or '-', 120)} |" for e in errors]
        lines += [""]
    return lines


def _unconfirmed(state: State) -> list[str]:
    named = [b for b in state.batches if b.outcome is BatchOutcome.UNCONFIRMED][:20]
    if not named:
        return []
    rows = [f"| {b.index + 1} | {escape(b.state_name or '-')} | {b.run or '-'} |" for b in named]
    return ["Not seen to end before the deadline:", "", "| batch | last seen | run |", "|---|---|---|", *rows, ""]
