"""Takes the pictures of the pages: `python -m tests.e2e.pictures` writes `docs/images/{form,report}.png`.

Runs the demo's batch flow over source files of the Python installation, some of which do not parse, on a stack of its
own.
"""

from __future__ import annotations

import sysconfig
import tempfile
from pathlib import Path

from orchestrator.stack import Stack
from tests.e2e.ui_support import Ui, open_browser
from tests.support import eventually

ROOT = Path(__file__).parents[2]
PARAMETERS = {
    "deployment": "source-metrics/default",
    "items": {"pattern": f"{sysconfig.get_path('stdlib')}/lib2to3/**/*.py"},
    "batch_size": 20,
    "max_in_flight": 3,
    "kill_switch": "failed >= 50",
}


def main() -> None:
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    with Stack(pool="local") as stack, tempfile.TemporaryDirectory() as storage, open_browser() as browser:
        stack.deploy(ROOT / "prefect.yaml")
        ui = Ui(stack, "default")
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(ui.form_url())
        page.get_by_text("Change some", exact=True).wait_for()
        page.wait_for_timeout(1000)  # fonts and icons
        page.screenshot(path=images / "form.png")

        run = ui.submit(**PARAMETERS, advanced={"job_id": "python-sources", "storage": storage})
        ui.await_state(run)
        eventually(lambda: ui.page(run)["data"].startswith("# Failed: "), 60, "the report is on the page")
        page.goto(ui.page_url(run))
        page.get_by_role("heading", name="items failed").wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(path=images / "report.png")


if __name__ == "__main__":
    main()
