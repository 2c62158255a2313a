"""The deployments that this package brings along, in one list: `deploy` and the embedded stack register all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OwnDeployment:
    """One of them.

    Args:
        entrypoint: The flow, by its module.
        cron: A schedule; None for none. It is registered paused: switching it on is for people.
        scheduled: Parameters of the runs that the schedule starts.
    """

    name: str
    entrypoint: str
    cron: str | None = None
    scheduled: Mapping[str, Any] = field(default_factory=dict)

    @property
    def short_name(self) -> str:
        """Its name without that of its flow."""
        return self.name.partition("/")[2]

    @property
    def schedules(self) -> list[dict[str, Any]]:
        """As a `prefect.yaml` says it."""
        if self.cron is None:
            return []
        return [{"cron": self.cron, "active": False, "slug": "by-itself", "parameters": dict(self.scheduled)}]

    def entry(self, pool: str) -> dict[str, Any]:
        """Its entry of a `prefect.yaml`."""
        entry = {"name": self.short_name, "entrypoint": self.entrypoint, "work_pool": {"name": pool}}
        return entry | ({"schedules": self.schedules} if self.cron else {})


PARENT = OwnDeployment("orchestrate/default", "orchestrator.flows.parent.orchestrate_flow")
CLEANUP = OwnDeployment(
    "cleanup-jobs/default", "orchestrator.flows.cleanup.cleanup_flow", "30 4 * * *", {"dry_run": False}
)
CONTROL = OwnDeployment("control-job/default", "orchestrator.flows.control.control_job_flow")
OWN = (PARENT, CONTROL, CLEANUP)
