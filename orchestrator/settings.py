"""Settings of an installation: environment variables `ORCHESTRATOR_*`, each with its unit and default.

What belongs to one job is a parameter of that job; what belongs to a machine or a team is here. The parent hands the
few that a child must share (the times of its fence) to it in the job's spec, so that both sides agree.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orchestrator.errors import ConfigurationError


class Settings(BaseSettings):
    """Read once per call of ours from the environment."""

    model_config = SettingsConfigDict(env_prefix="ORCHESTRATOR_", extra="ignore")

    storage: str | None = Field(
        default=None,
        description="fsspec URL or block:TYPE/NAME under which job folders live; by default `jobs` in a folder of "
        "PREFECT_HOME.",
    )
    parent_deployment: str = Field(
        default="orchestrate/default", description="Name of the deployed parent that `run --detach` triggers."
    )
    fence_seconds: float | None = Field(
        default=None,
        gt=0,
        le=60,
        description="Seconds between two looks of a child run at the job folder; by default 2 locally, else 5.",
    )
    item_grace_seconds: float = Field(
        default=10, ge=0, le=3600, description="Seconds that running items get to finish after a stop."
    )
    beat_seconds: float = Field(
        default=5, gt=0, le=60, description="Seconds between two signs of life of a parent run."
    )
    lease_seconds: float = Field(
        default=60,
        gt=0,
        le=3600,
        description="Seconds without a sign of life after which child runs give the parent up.",
    )
    alive_seconds: float = Field(
        default=15,
        ge=0,
        le=600,
        description="Seconds between two signs of life of a child run; after six without one it is replaced. 0: none.",
    )
    cancel_deadline_seconds: float = Field(
        default=30,
        gt=0,
        le=3600,
        description="Seconds after which a stop names the child runs that were not seen to end.",
    )
    poll_seconds: float = Field(
        default=3, ge=0.2, le=60, description="Least seconds between two readings of the child runs in flight."
    )
    max_waits: int = Field(
        default=50,
        ge=0,
        le=1000,
        description="Child runs listened to over a websocket each; the others are polled only.",
    )
    max_requests_per_minute: int | None = Field(
        default=None,
        ge=20,
        description="Most requests a minute that a parent run makes to Prefect's API; by default as many as it needs.",
    )
    submit_concurrency: int = Field(
        default=1, ge=1, le=16, description="Child runs created at the same time; above 1 only with PostgreSQL."
    )
    result_max_bytes: int = Field(
        default=65_536, ge=0, le=16_777_216, description="Largest result of one item, as JSON bytes."
    )
    parameters_max_bytes: int = Field(
        default=262_144,
        ge=1024,
        le=524_288,
        description="Largest parameters of one child run, as JSON bytes (Prefect refuses 512 KiB).",
    )
    masked_env: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Names of environment variables whose values are masked in all that is written, comma separated.",
    )
    record_events: bool = Field(
        default=True,
        description="Whether a parent run records its events in the job folder, for `replay` and `resume`.",
    )
    python_sources: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Modules that `python:` sources of a deployed parent may name, comma separated."
    )
    allow_http_sources: bool = Field(
        default=False, description="Whether a deployed parent may read `http(s)://` sources."
    )

    @model_validator(mode="after")
    def _fit_times(self) -> Self:
        if self.lease_seconds < 3 * self.beat_seconds:
            raise ValueError(
                f"ORCHESTRATOR_LEASE_SECONDS={self.lease_seconds:g} must be at least three times "
                f"ORCHESTRATOR_BEAT_SECONDS={self.beat_seconds:g}, or child runs give a living parent up"
            )
        return self

    @field_validator("masked_env", "python_sources", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def settings_error(error: ValidationError) -> ConfigurationError:
    """What is wrong with the environment, on one line."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return ConfigurationError(first["msg"].removeprefix("Value error, "))
    name = str(first["loc"][0]).upper()
    return ConfigurationError(f"environment variable ORCHESTRATOR_{name}: {first['msg']}")
