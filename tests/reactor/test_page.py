"""The page of a job: what people read while it runs and when it is over, and that no item can write on it."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from orchestrator.engine.faults import Faults
from orchestrator.reactor.page import code, duration, escape
from orchestrator.testing import Simulation, simulate

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "a | b | c",
    "`code` **bold** ~~gone~~ # head",
    "https://evil.example/ www.evil.example me@evil.example",
    "first\n\n# second\r\n| a |\n|---|",
    "&lt;b&gt; \u202eright to left",
]
INSIDE = re.compile(r"\b(fence|lease|tally|reactor|gateway|epoch|settled?|ledger|machine)\b", re.IGNORECASE)


def rendered(markdown: str) -> str:
    return MarkdownIt("default", {"html": True, "linkify": False}).enable("table").render(markdown)


def page_of(simulation: Simulation) -> str:
    (page,) = simulation.engine.pages.values()
    return str(page)


def fail_each(item: Any) -> None:
    raise ValueError(f"no: {item['name']}")


@given(st.text(max_size=80) | st.text("<>[]()*_`|&;#!~$\\ ab1-:/", max_size=40))
def test_any_text_comes_out_of_markdown_as_it_went_in(text: str) -> None:
    out = html.unescape(MarkdownIt("default", {"html": True}).renderInline(escape(text)))
    flat = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    assert out == flat


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_keys_and_errors_are_text_on_the_page(text: str) -> None:
    page = page_of(simulate(fail_each, [{"name": text}], key="name", kill_switch=None))
    made = rendered(page)
    allowed = "h1|p|table|thead|tbody|tr|th|td|strong|em|code|ul|li"
    assert not re.findall(rf"<(?!/?(?:{allowed})(?: style=\"text-align:\w+\")?>)[^>]*>", made), made
    shown = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    assert shown in html.unescape(made)
    rows = re.findall(r"<tr>(.*?)</tr>", made, re.DOTALL)
    assert {row.count("<td>") for row in rows} <= {0, 2, 3, 5}, "no cell is added to a table"


def test_the_report_says_what_became_of_the_items_and_how_to_go_on() -> None:
    simulation = simulate(lambda n: 1 // (n % 90), range(100), batch_size=10, kill_switch=None, job_id="photos")
    page = page_of(simulation)
    assert page.startswith("# Failed: 2 of 100 items failed\n")
    assert "| 100 | 98 | 2 | 0 | 0 |" in page
    assert "**First failure:** item 0: ZeroDivisionError" in page
    assert "simulated 1/10 (00000000-0000-4000-8000-000000000000) | 1 item failed |" in page
    assert "among the slowest" in page
    assert "`job:photos?outcome=failed,unknown,not_started`" in page
    assert "`orchestrator results photos`" in page
    assert not INSIDE.search(page)


def test_a_job_that_went_well_needs_no_more_words() -> None:
    page = page_of(simulate(lambda n: n, range(10), job_id="well"))
    assert page.startswith("# Completed: all 10 items succeeded\n")
    assert "what is left" not in page
    assert "irst failure" not in page


def test_a_trip_is_said_with_its_clause_and_its_numbers() -> None:
    page = page_of(simulate(lambda n: 1 // 0, range(100), batch_size=10, max_in_flight=2, kill_switch="failed >= 5"))
    assert page.startswith("# Tripped: ")
    assert re.search(r"\*\*Kill switch:\*\* failed &gt;= 5 \(failed = \d+\)", page)
    assert not INSIDE.search(page)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (4.21, "4.2 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_read_like_speech(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_code_cannot_be_ended_from_within() -> None:
    assert code("a/b") == "`a/b`"
    assert "`" not in code("a` <b>").replace("\\`", "")


def test_a_server_that_is_busy_at_the_end_still_gets_the_report() -> None:
    faults = Faults()
    # From before the job's end until some seconds after it, no page can be written.
    faults.outage(5.0, 12.0, "publish_page")
    simulation = simulate(lambda n: n, range(40), batch_size=10, seconds_per_item=0.5, faults=faults)
    assert 5 < simulation.report.seconds < 12
    assert page_of(simulation).startswith("# Completed: all 40 items succeeded\n")
