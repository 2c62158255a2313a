"""What people see: hostile texts made harmless, durations, the live page and the last one."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from orchestrator.core.model import Counts, Failure, Phase, StopMode
from orchestrator.core.report import build_report
from orchestrator.reactor.page import duration, escape, live_page, report_page
from orchestrator.reactor.view import Rate, look, nothing_runs
from tests.unit.core.play import Play, done, lost

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](http://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "**bold** _it_ `code` ~~gone~~",
    "a | b | c",
    "# heading\n## another",
    "&lt;b&gt; &#60;b&#62;",
    "<https://evil.example>",
    "back\\slash \\<b>",
    "line\r\nbreak\u2028and\u2029more",
    "```\nfence\n```",
    "$$x$$",
    "[ref]: http://evil.example",
]
MARKUP = re.compile(r"<(script|img|a|strong|em|code|s|del|h[1-6]|b|pre|br)\b")


def rendered(text: str) -> str:
    return MARKDOWN.render(f"first {escape(text, 10_000)} last")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text):
    assert not MARKUP.search(rendered(text))
    assert "\n" not in escape(text)


@given(st.text(max_size=200))
def test_any_text_stays_text_and_inside_its_cell(text):
    html = MARKDOWN.render(f"| a | b |\n|---|---|\n| {escape(text)} | end |\n")
    assert not MARKUP.search(html)
    assert html.count("<td>") == 2
    assert "<td>end</td>" in html


def test_long_text_is_cut():
    assert len(escape("x" * 10_000)) == 300
    assert escape("x" * 10_000, 10).endswith("…")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (9.97, "10 s"),
        (42.4, "42 s"),
        (59.7, "1 min 0 s"),
        (60, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (200_000, "55 h 33 min"),
    ],
)
def test_durations_are_said_in_words_that_are_right(seconds, text):
    assert duration(seconds) == text


# ---------------------------------------------------------------- the pages


def running() -> Play:
    play = Play(10, 10, max_in_flight=2, submit_concurrency=2, kill_switch="failed >= 8")
    play.submitted(0, Phase.RUNNING)
    play.submitted(1, Phase.PENDING)
    play.progress(1, Counts(3, 1, 1, {"ValueError": 1}, Failure(2, "k|2", "ValueError", "<b>no</b>")))
    return play


def live(play: Play, **more: Any) -> str:
    view = replace(look(play.state, "j"), **more)
    return live_page(view, "measure/default", 2, "s3://bucket/j")


def test_the_live_page_shows_counts_children_and_the_first_failure():
    page = live(running(), rate=12.345, eta_seconds=90.0)
    assert "4 of 20 items over" in page
    assert "20 %" in page
    assert "12.3 items/s" in page
    assert "1 min 30 s" in page
    assert "1 Pending, 1 Running" in page
    assert "ValueError" in page
    assert "<b>" not in page


def test_the_live_page_of_a_job_of_nothing_is_done():
    assert "100 %" in live(Play())


def test_all_but_one_item_is_not_everything():
    play = Play(10_000)
    play.submitted(0, Phase.RUNNING)
    play.progress(1, Counts(9_999))
    assert "100 %" not in live(play)


@pytest.mark.parametrize(("mode", "words"), [(StopMode.DRAIN, "finish"), (StopMode.CANCEL, "cancelling")])
def test_the_live_page_says_that_and_how_the_job_stops(mode, words):
    play = running()
    play.stop(mode, reason="because of `x`")
    page = live(play)
    assert "**Stopping**" in page
    assert words in page
    assert "`x`" not in page


def test_the_last_page_says_how_it_ended_what_tripped_and_who_was_not_seen_to_end():
    play = running()
    play.progress(2, Counts(1, 8, 8, {"ValueError": 8}))
    play.wait(31)
    play.closed(lost(1, 2, 7), 0)
    play.closed(lost(0, 0, 10), 1)
    report = build_report(play.state, job_id="j", deployment="d/e", failed_by_rule=False)
    page = report_page(report, play.state)
    assert "Tripped" in page
    assert "failed &gt;= 8" in page
    assert "failed = 8" in page
    assert "Not seen to end" in page
    assert "run-0-0" in page


def test_the_last_page_of_a_job_without_batches_names_none():
    play = Play()
    page = report_page(build_report(play.state, job_id="j", deployment="d/e", failed_by_rule=False), play.state)
    assert "no items" in page
    assert "Batches" not in page


def test_no_word_of_the_inside_is_on_a_page():
    inside = re.compile(r"\b(fence|lease|tally|reactor|gateway|epoch|settle[sd]?)\b", re.IGNORECASE)
    play = running()
    play.stop()
    pages = live(play)
    play.wait(31)
    play.closed(lost(1, 2, 7), 0)
    play.closed(lost(0, 0, 10), 1)
    pages += report_page(build_report(play.state, job_id="j", deployment="d/e", failed_by_rule=False), play.state)
    assert not inside.search(pages)


# ---------------------------------------------------------------- the view


def test_a_view_counts_children_by_what_prefect_calls_their_phase():
    play = running()
    assert look(play.state, "j").in_flight == {"Running": 1, "Pending": 1}
    assert look(Play(3).state, "j").in_flight == {"Submitting": 1}


def test_the_time_left_is_told_only_while_it_can_be():
    play = running()
    assert look(play.state, "j", None).eta_seconds is None
    assert look(play.state, "j", 0.0).eta_seconds is None
    assert look(play.state, "j", 4.0).eta_seconds == 4.0
    play.stop()
    assert look(play.state, "j", 4.0).eta_seconds is None


def test_a_view_of_a_job_that_is_over_adds_up():
    play = running()
    play.ends(done(10), 0)
    play.ends(lost(1, 2, 7), 1, phase=Phase.CANCELLED)
    view = look(play.state, "j")
    assert view.settled == view.total == 20
    assert view.batches_by_outcome == {"completed": 1, "cancelled": 1}


def test_nothing_runs_while_all_children_wait_for_a_place():
    play = Play(1, 1, max_in_flight=2)
    assert not nothing_runs(play.state), "a creation is under way"
    play.submitted(0, Phase.SCHEDULED)
    play.submitted(1, Phase.PENDING)
    assert nothing_runs(play.state)
    play.seen(Phase.RUNNING, 0)
    assert not nothing_runs(play.state)


def test_the_rate_is_that_of_the_last_minute():
    rate = Rate()
    assert rate.read(0, 0) is None
    assert rate.read(1, 10) is None
    assert rate.read(10, 100) == 10
    for second in range(11, 200):
        newest = rate.read(second, 100)
    assert newest == 0
    assert len(rate._readings) <= 61


def test_counts_that_go_back_are_no_negative_rate():
    rate = Rate()
    rate.read(0, 100)
    assert rate.read(10, 90) == 0
