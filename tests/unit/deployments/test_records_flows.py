"""Records, the third kind of test: what a job makes of the steps, in virtual time and without a server."""

from __future__ import annotations

from typing import Any

import yaml

from deployments.records.cleaning import Order, orders_of
from deployments.records.flows import records_ingest, records_nightly, records_publish, records_transform
from deployments.records.tasks import load
from orchestrator.testing import simulate
from tests.docs.pages import ROOT

PAGES = [{"page": f"p{n}"} for n in range(12)]


def test_pages_that_fail_are_counted_and_the_others_are_loaded(tmp_path: Any) -> None:
    """The two steps as plain functions, in a job of four child runs."""
    url = f"sqlite:///{tmp_path / 'warehouse.db'}"

    def ingest(item: dict[str, str]) -> Any:
        page = item["page"]
        body = b"{" if page in ("p3", "p7") else b'{"orders": []}'
        return load.fn(orders_of(body, page), page, url)

    simulation = simulate(ingest, PAGES, batch_size=3, key="page")
    assert (simulation.report.items.succeeded, simulation.report.items.failed) == (10, 2)
    failed = [o for o in simulation.folder.outcomes() if o.error_type]
    assert [(o.key, o.error_type) for o in failed] == [("p3", "BadRecordError"), ("p7", "BadRecordError")]
    assert "page p3: is no JSON" in str(failed[0].error_text)


def test_a_source_that_is_down_stops_the_job() -> None:
    def ingest(item: dict[str, str]) -> list[Order]:
        raise ConnectionError(f"page {item['page']}: refused")

    simulation = simulate(ingest, PAGES, batch_size=3, key="page", kill_switch="failed >= 3", max_in_flight=1)
    assert simulation.report.verdict == "tripped"
    assert simulation.report.items.not_started >= 6


def test_the_flows_are_what_prefect_yaml_deploys() -> None:
    entries = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    ours = {e["entrypoint"].rpartition(":")[2] for e in entries if "deployments/records" in e["entrypoint"]}
    assert ours == {f.fn.__name__ for f in (records_ingest, records_transform, records_publish, records_nightly)}
    schedules = [s for e in entries if "records_nightly" in e["entrypoint"] for s in e["schedules"]]
    assert [s["cron"] for s in schedules] == ["0 1 * * *", "0 2 * * *", "0 3 * * *"]
    assert not any(s["active"] for s in schedules), "the demo's stack would start them"
