"""The Prefect UI in a real browser: the form, a job started from it, what its pages say, and what is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.stack import Stack, StackError
from tests.e2e.ui_support import PATIENCE, Ui, need_chromium, open_browser
from tests.support import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
browser_test = pytest.mark.browser

WORK = "careful/ui"
TABS = [
    "File", "File paths", "List", "Range", "Python", "Left by a job", "Results of a job", "Resume a job",
]  # fmt: skip
PARAMETERS = ["deployment", "items", "batch_size", "max_in_flight", "kill_switch", "parameters", "advanced"]
INSIDE = re.compile(r"\b(fence|lease|tally|reactor|gateway|epoch|ledger|subflow|chunk)\b", re.IGNORECASE)
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder for pictures of what the tests see


@pytest.fixture(scope="module")
def ui(session_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Ui:
    return Ui.deploy(session_stack, tmp_path_factory.mktemp("ui-project"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    need_chromium()
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def watched(ui: Ui) -> str:
    """A finished job of two batches, long enough for news of their progress, with one failure; its parent run."""
    items = [{"name": f"photo {n}"} for n in range(40)]
    items[25]["fail"] = "no such photo"
    run = ui.submit(
        deployment=WORK, items={"items": items}, batch_size=20, parameters={"seconds": 0.5}, advanced={"key": "name"}
    )
    ui.await_state(run)
    return run


def picture(page: Any, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def press_submit(page: Any) -> dict[str, Any]:
    """The run that was created; pressed again while SQLite is busy."""

    def press() -> dict[str, Any] | None:
        with page.expect_response(re.compile("create_flow_run")) as answer:
            page.get_by_role("button", name="Submit").click()
        return answer.value.json() if answer.value.status != 503 else None

    run = eventually(press, PATIENCE, "the run is created")
    assert run is not None
    return run


# ---------------------------------------------------------------- the form


@browser_test
@pytest.mark.parametrize("version", ["v2/", ""], ids=["v2", "v1"])
def test_the_form_is_short_described_and_has_a_tab_per_source(ui: Ui, page: Any, version: str) -> None:
    page.goto(ui.form_url(version))
    page.get_by_text("File paths", exact=True).wait_for()
    text = page.inner_text("body")
    picture(page, f"form-{version.strip('/') or 'v1'}")

    places = [re.search(rf"^{name}( \(Optional\))?$", text, re.MULTILINE) for name in PARAMETERS]
    assert None not in places
    assert [p.start() for p in places if p] == sorted(p.start() for p in places if p)
    for tab in [*TABS, "One deployment", "One for each group", "Expression", "Limits", "Defaults", "Change some"]:
        assert page.get_by_text(tab, exact=True).count() == 1, tab
    assert "Where the items come from." in text
    assert "The batch deployment that works on the items, as flow-name/deployment-name." in text
    assert "on_trip" not in text, "the advanced group is folded away"

    page.get_by_text("Change some", exact=True).click()
    page.get_by_text("Field of each item that labels it; by default its number.").wait_for()
    assert page.inner_text("body").count('Property is type "None"') == 0, "fields that may stay empty are plain fields"


@browser_test
def test_what_is_missing_is_said_beside_the_field_and_nothing_is_created(ui: Ui, page: Any) -> None:
    page.goto(ui.form_url())
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("'deployment' is a required property", exact=True).wait_for()
    page.get_by_text("'items' is a required property", exact=True).wait_for()


@browser_test
def test_a_job_started_in_the_form_ends_with_its_report_on_the_page(ui: Ui, page: Any) -> None:
    page.goto(ui.form_url())
    page.get_by_text("Range", exact=True).click()
    texts, numbers = page.get_by_role("textbox"), page.get_by_role("spinbutton")
    texts.nth(1).fill(WORK)
    for n, value in enumerate(("0", "60", "20", "2")):  # start, stop, batch_size, max_in_flight
        numbers.nth(n).fill(value)
    texts.nth(2).fill("failed >= 3")
    run = press_submit(page)
    assert run["parameters"]["items"] == {"start": 0, "stop": 60}
    assert run["parameters"]["kill_switch"] == "failed >= 3"

    assert ui.await_state(run["id"])["state"]["type"] == "COMPLETED"
    page.goto(ui.run_url(run["id"], "Artifacts"))
    page.get_by_text(f"job-{run['id']}-1").click()
    page.get_by_role("link", name=ui.page(run["id"])["id"][:8]).click()
    page.get_by_role("heading", name="Completed: all 60 items succeeded").wait_for()
    assert page.get_by_role("row", name="60 60 0 0 0").count() == 1
    page.get_by_text("Batches: 3 completed, of 3. At most").first.wait_for()
    picture(page, "report")
    assert len(ui.children(run["id"])) == 3


@browser_test
def test_a_list_is_pasted_as_json(ui: Ui, page: Any) -> None:
    page.goto(ui.form_url())
    page.get_by_text("List", exact=True).click()
    page.get_by_role("textbox").nth(1).fill(WORK)
    page.locator(".cm-content").first.click()
    page.keyboard.insert_text('["a.jpg", {"id": 2}, 3]')
    run = press_submit(page)
    assert run["parameters"]["items"] == {"items": ["a.jpg", {"id": 2}, 3]}
    assert ui.await_state(run["id"])["state"]["message"] == "all 3 items succeeded"


# ---------------------------------------------------------------- wrong input


IN_ONE_LINE = [
    ({"kill_switch": "failed >= "}, r"^kill_switch: expected .*\n    failed >= \n {13}\^$"),
    ({"deployment": "carefull/ui"}, r"careful/ui"),
    ({"items": {"path": "/nowhere/items.csv"}}, r"/nowhere/items\.csv"),
    ({"items": {"pattern": ""}}, r"^items: say where they come from"),
    ({"items": {"callable": "os:listdir"}}, r"ORCHESTRATOR_PYTHON_SOURCES"),
    ({"parameters": {"seconds": "soon"}}, r"seconds"),
    ({"advanced": {"job_id": "../elsewhere"}}, r"^job_id: "),
    ({"advanced": {"storage": "s3://user:secret@bucket/jobs"}}, r"^(?!.*secret)"),
]
IN_THE_FORM: list[dict[str, Any]] = [
    {"kill_switch": {"max_failed_rate": 0.5, "min_sample": 0}},
    {"batch_size": 0},
    {"max_in_flight": 5000},
    {"advanced": {"on_trip": "explode"}},
    {"advanced": {"nonsense": 1}},
    {"items": {}},
]
RIGHT = {"deployment": WORK, "items": {"stop": 3}}


@pytest.mark.parametrize("wrong", IN_THE_FORM, ids=str)
def test_what_the_schema_tells_is_refused_in_the_form(ui: Ui, wrong: dict[str, Any]) -> None:
    with pytest.raises(StackError, match=r"HTTP 409.*Validation failed"):
        ui.submit(**RIGHT | wrong)


def test_other_wrong_input_ends_in_one_clear_line(ui: Ui) -> None:
    # All at once: each costs the start of a process.
    runs = [(ui.submit(**RIGHT | wrong), wrong, said) for wrong, said in IN_ONE_LINE]
    for run, wrong, said in runs:
        state = ui.await_state(run)["state"]
        assert (state["type"], state["name"]) == ("FAILED", "Refused"), (wrong, state)
        assert re.search(said, state["message"]), (wrong, state["message"])
        assert "Traceback" not in "\n".join([state["message"], *ui.logs(run)]), wrong
        assert not ui.children(run)


# ---------------------------------------------------------------- what people see


def test_child_runs_have_names_tags_progress_and_a_state_that_says_it(ui: Ui, watched: str) -> None:
    children = ui.children(watched)
    assert [child["name"] for child in children] == ["careful 1/2", "careful 2/2"]
    assert all({"orchestrator", f"job:{watched}-1"} <= set(child["tags"]) for child in children)
    assert [child["state"]["name"] for child in children] == ["Completed", "CompletedWithFailures"]
    assert children[1]["state"]["message"] == "19 succeeded, 1 failed of 20 items"
    bars = [a for a in ui.artifacts(*(child["id"] for child in children)) if a["type"] == "progress"]
    assert len(bars) == 2
    assert all(bar["data"] == 100 and bar["description"] for bar in bars)


def test_the_parents_state_and_page_say_how_it_ended(ui: Ui, watched: str) -> None:
    state, page = ui.run(watched)["state"], ui.page(watched)
    assert (state["type"], state["message"]) == ("FAILED", "1 of 40 items failed")
    assert page["description"]
    assert page["data"].startswith("# Failed: 1 of 40 items failed\n")
    assert "**First failure:** item 25 (photo 25): ValueError: no such photo" in page["data"]
    failed = ui.children(watched)[1]
    assert f"[careful 2/2]({ui.run_url(failed['id'], ui='')}) | 1 item failed" in page["data"]


def test_logs_speak_of_items_batches_and_jobs_alone(ui: Ui, watched: str) -> None:
    end = f"WARNING Job {watched}-1 completed: 1 of 40 items failed"
    eventually(lambda: end in ui.logs(watched), PATIENCE, "the last line is logged")  # logs come a little later
    parent, children = ui.logs(watched), [line for child in ui.children(watched) for line in ui.logs(child["id"])]
    assert f"INFO Job {watched}-1: 40 items in 2 batches over {WORK}, at most 8 child runs at once." in parent
    assert "WARNING Batch 2: item 25 (photo 25) failed: ValueError: no such photo" in parent
    assert any("photo 25" in line for line in children)
    said = "\n".join([*parent, *children])
    assert not INSIDE.search(said), INSIDE.findall(said)
    assert "Traceback" not in said


HOSTILE = ["<img src=x onerror=alert(1)>", "[x](javascript:alert(1)) | https://evil.example", "a\n\n| b |\n|---|\n# c"]


@pytest.fixture(scope="module")
def hostile(ui: Ui) -> str:
    """A finished job in which every item failed, with texts that mean mischief; its parent run."""
    types = ["ValueError", "TypeError", "RuntimeError"]
    items = [{"name": text, "fail": text, "with": kind} for text, kind in zip(HOSTILE, types, strict=True)]
    run = ui.submit(deployment=WORK, items={"items": items}, batch_size=1, kill_switch=None, advanced={"key": "name"})
    ui.await_state(run)
    return run


@browser_test
@pytest.mark.parametrize("version", ["v2/", ""], ids=["v2", "v1"])
def test_keys_and_errors_of_items_are_text_on_the_page(ui: Ui, page: Any, hostile: str, version: str) -> None:
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.goto(ui.page_url(hostile, version))
    page.get_by_role("heading", name="Failed: 3 of 3 items failed").wait_for()
    for text in HOSTILE:
        flat = " ".join(text.split())
        eventually(lambda flat=flat: flat in " ".join(page.inner_text("body").split()), 60, f"{flat} is on the page")
    assert page.locator("img[src=x]").count() == 0
    links = page.locator("a").evaluate_all("all => all.map(a => [a.getAttribute('href') || '', a.innerText])")
    assert not [href for href, _ in links if href.startswith("javascript")]
    assert all(text in href for href, text in links if "evil" in href), "no link hides where it leads"
    rows = page.locator("table tr").evaluate_all("all => all.map(row => row.cells.length)")
    assert set(rows) <= {2, 3, 5}, "no cell is added to a table"
    assert not asked


@browser_test
def test_cancelling_the_run_in_the_ui_stops_its_child_runs_and_says_so(ui: Ui, page: Any) -> None:
    run = ui.submit(deployment=WORK, items={"stop": 2000}, batch_size=1000, parameters={"seconds": 0.1})
    eventually(lambda: [c for c in ui.children(run) if c["state"]["type"] == "RUNNING"], PATIENCE, "children running")
    page.goto(ui.run_url(run))
    page.get_by_role("button", name="Open menu").click()
    page.get_by_role("menuitem", name="Cancel").click()
    page.get_by_role("button", name="Cancel").last.click()
    ui.await_state(run, "CANCELLED")
    eventually(lambda: all(c["state"]["type"] == "CANCELLED" for c in ui.children(run)), PATIENCE, "children cancelled")
    for child in ui.children(run):
        name, message = child["state"]["name"], child["state"]["message"]
        assert name != "Stopped" or re.search(
            r"succeeded, [\d,]+ not finished of 1,000 items: .* was cancelled$", message
        )
    named = rf"# Cancelled: {ui.run(run)['name']} was cancelled; [\d,]+ of 2,000 items succeeded\n"
    eventually(lambda: re.match(named, ui.page(run)["data"]), PATIENCE, "the page says so")
    page.goto(ui.page_url(run))
    page.get_by_role("heading", name="Cancelled").wait_for()
    picture(page, "cancelled")
