"""What a measurement says, and the table that all of them end in."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        benchmark: Name of the measurement.
        measure: What was measured, with its unit.
        ours: The number for this package.
        other: The number it is held against; None when it stands alone.
        other_is: What that other thing is.
        ratio: ours / other, or how it is to be read in `wanted`; None when there is none.
        wanted: The claim, for people; "" when none is made.
        holds: Whether the claim held in this run; None when none is made.
    """

    benchmark: str
    measure: str
    ours: float
    other: float | None = None
    other_is: str = ""
    ratio: float | None = None
    wanted: str = ""
    holds: bool | None = None


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| benchmark | measured | ours | compared with | ratio | wanted | holds |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for row in rows:
        other = "" if row.other is None else f"{number(row.other)} {row.other_is}".strip()
        ratio = "" if row.ratio is None else number(row.ratio)
        holds = {None: "", True: "yes", False: "**no**"}[row.holds]
        cells = (row.benchmark, row.measure, number(row.ours), other, ratio, row.wanted, holds)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that matter, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}" if abs(value) >= 0.001 else f"{value:.2g}"


def distribution(benchmark: str, measure: str, values: Sequence[float], *, most: float | None = None) -> list[Row]:
    """Least, median and most of several measurements; `most` is the bound that the last one is held against."""
    return [
        Row(benchmark, f"{measure}: least of {len(values)}", min(values)),
        Row(benchmark, f"{measure}: median", statistics.median(values)),
        Row(
            benchmark,
            f"{measure}: most",
            max(values),
            wanted="" if most is None else f"<= {most:g}",
            holds=None if most is None else max(values) <= most,
        ),
    ]


def machine() -> str:
    """One line about what this ran on."""
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}, Python {platform.python_version()}, "
        f"Prefect {version('prefect')}"
    )
