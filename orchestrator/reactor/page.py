"""The live page on the parent run: one markdown text, from the first child to the report."""

from __future__ import annotations

import re
from collections.abc import Sequence

from orchestrator.core.machine import State
from orchestrator.core.model import BatchOutcome, Failure
from orchestrator.core.report import ErrorCluster, Report
from orchestrator.reactor.view import JobView

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>~])")


def escape(text: str, limit: int = 300) -> str:
    """Text from items and errors, made harmless inside markdown: one line, no markup, cut."""
    flat = " ".join(text.split())
    cut = flat if len(flat) <= limit else flat[: limit - 1] + "…"
    return _SPECIAL.sub(r"\\\1", cut).replace("\\<", "&lt;").replace("\\>", "&gt;")


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def live_page(view: JobView, deployment: str, max_in_flight: int, storage: str) -> str:
    """The page while the job goes on."""
    lines = [
        f"# Job {escape(view.job_id)}",
        "",
        f"Fans out over `{deployment}`, at most {max_in_flight} child runs at once.",
        "",
    ]
    if view.stopping:
        how = "letting child runs finish" if view.draining else "cancelling child runs"
        lines += [f"**Stopping** ({how}): {escape(view.stopping)}", ""]
    done = view.settled / view.total if view.total else 1.0
    rate = f"{view.rate:,.1f} items/s" if view.rate is not None else "-"
    eta = duration(view.eta_seconds) if view.eta_seconds is not None else "-"
    flying = ", ".join(f"{n} {phase}" for phase, n in sorted(view.in_flight.items())) or "none"
    lines += [
        "| items | succeeded | failed | unknown | done | rate | time left | elapsed |",
        "|---|---|---|---|---|---|---|---|",
        f"| {view.total:,} | {view.succeeded:,} | {view.failed:,} | {view.unknown:,} | {done:.0%} | {rate} | {eta} "
        f"| {duration(view.seconds)} |",
        "",
        f"Batches: {view.batches_settled:,} of {view.batches_total:,} over. In flight: {flying}.",
        "",
    ]
    if view.waiting_for:
        lines += [f"**Waiting:** {escape(view.waiting_for)}", ""]
    lines += _failures(view.errors, view.first_failure)
    return "\n".join([*lines, f"Results and failures: `{storage}`"])


def report_page(report: Report, state: State | None = None) -> str:
    """The page once the job is over."""
    n = report.items
    title = report.verdict.value if not report.failed_by_rule else "completed, with too many failures"
    lines = [
        f"# Job {escape(report.job_id)}: {title}",
        "",
        escape(report.headline),
        "",
        "| items | succeeded | failed | unknown | not started |",
        "|---|---|---|---|---|",
        f"| {n.total:,} | {n.succeeded:,} | {n.failed:,} | {n.unknown:,} | {n.not_started:,} |",
        "",
        "Batches: "
        + ", ".join(
            f"{getattr(report.batches, o.value):,} {o.value.replace('_', ' ')}"
            for o in BatchOutcome
            if getattr(report.batches, o.value)
        )
        + f" of {report.batches.total:,}, at most {report.max_in_flight_seen} at once, in {duration(report.seconds)}.",
        "",
    ]
    switch = report.kill_switch
    if switch.tripped and switch.clause:
        numbers = ", ".join(f"{escape(k)} = {v:g}" for k, v in switch.at.items())
        lines += [f"**Kill switch:** {escape(switch.clause)}" + (f" ({numbers})" if numbers else ""), ""]
    lines += _failures(report.errors, switch.first_failure)
    if state is not None:
        lines += _unconfirmed(state)
    lines += [f"* {escape(note)}" for note in report.notes]
    return "\n".join([*lines, "", f"Results and failures: `{report.storage}`"])


def _failures(errors: Sequence[ErrorCluster], first: Failure | None) -> list[str]:
    lines: list[str] = []
    if first is not None:
        what = f"{escape(first.type)}: {escape(first.text)}"
        lines += [f"**First failure:** item {first.index} ({escape(first.key, 80)}): {what}", ""]
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
