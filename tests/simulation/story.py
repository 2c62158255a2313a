"""Telling the story of a seed: its scenario, what was violated, and the timeline of the batch it is about."""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.play import Played


def tell(played: Played, *, whole: bool = False, most: int = 250) -> Iterator[str]:
    """The story, line by line.

    Args:
        whole: Every batch's lines, not only those of the job and of the first batch that a violation names.
        most: Lines of the timeline.
    """
    yield str(played.scenario)
    for violation in played.violations[:10]:
        where = "" if violation.batch is None else f" (batch {violation.batch})"
        yield f"{violation.at:10.3f}  {violation.rule}: {violation.text}{where}"
    if not played.violations:
        yield f"no violation; {played.verdict} after {played.seconds:.0f} s"
    batch = next((v.batch for v in played.violations if v.batch is not None), None)
    lines = [x for x in played.lines or () if whole or x[1] is None or x[1] == batch]
    if len(lines) > most:
        yield f"... the last {most} of {len(lines)} lines"
    for at, about, who, text in lines[-most:]:
        yield f"{at:10.3f}  {'' if about is None else about:>5}  {who:9} {text}"


__all__ = ["tell"]
