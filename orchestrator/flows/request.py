"""What a job can be asked to be: one model for Python, the form in Prefect's UI and the command line.

Everything in it is JSON. Nothing here asks Prefect or touches storage: a request that is wrong by itself is refused
before anything is looked up.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from orchestrator.core.killswitch import DEFAULT_FAIL_IF, DEFAULT_KILL_SWITCH, Switch, from_limits, parse
from orchestrator.core.model import StopMode
from orchestrator.errors import ConfigurationError
from orchestrator.reactor.job import OnParentCancelled, PassItems
from orchestrator.store import check_job_id

EVERY_OTHER_GROUP = "*"


def _plain_fields(schema: dict[str, Any]) -> None:
    """Show a field that may stay empty as an empty field: `X | None` is two tabs in Prefect's form (see `form`)."""
    for name, field in schema.get("properties", {}).items():
        choices = [choice for choice in field.pop("anyOf", []) if choice.get("type") != "null"]
        if len(choices) == 1 and field.get("default") is None:
            field.pop("default", None)
            schema["properties"][name] = {**choices[0], **field}
        elif choices:
            kept = choices[0] if len(choices) == 1 else {"anyOf": choices}
            schema["properties"][name] = {**kept, **field}


_FORM = ConfigDict(
    extra="forbid",
    allow_inf_nan=False,  # neither is JSON, and no time is that long
    field_title_generator=lambda name, _: name,  # as in Python and on the command line
    json_schema_extra=_plain_fields,
)


class Limits(BaseModel):
    """The simple form of a kill switch: stop when more items fail than this."""

    model_config = _FORM

    max_failed: int | None = Field(default=None, ge=0, description="Stop when more items than this have failed.")
    max_failed_rate: float | None = Field(
        default=None, ge=0, lt=1, description="Stop when a larger share of the items has failed: 0.05 is 5 %."
    )
    min_sample: int = Field(default=20, ge=1, description="Items that must be over before the share counts.")


class Advanced(BaseModel):
    """Everything that most jobs leave as it is."""

    model_config = _FORM | ConfigDict(title="Change some")

    on_trip: Literal["cancel", "drain"] = Field(
        default="cancel",
        description="What a stop does to child runs in flight: cancel them, or let them finish (drain).",
    )
    fail_if: str | None = Field(
        default=str(DEFAULT_FAIL_IF), description="Makes a finished job Failed when true. Empty: it never fails."
    )
    enough_when: str | None = Field(
        default=None, description="Ends the job early, as a success, when true; for example: succeeded >= 100"
    )
    key: str | None = Field(default=None, description="Field of each item that labels it; by default its number.")
    select: str | None = Field(default=None, description="Field of each item that is handed on instead of the item.")
    skip_succeeded_of: str | None = Field(
        default=None,
        description="Id of an earlier job, or nightly-* for all of a series: items whose key succeeded there are left out.",  # noqa: E501 - shown in one line
    )
    unique_keys: bool = Field(default=False, description="Refuse a source in which a key comes twice.")
    group_by: str | None = Field(
        default=None, description="Field of each item; a batch holds only adjacent items of one value."
    )
    max_bytes: int | None = Field(default=None, ge=1, description="Most bytes of items in one batch.")
    weight: str | None = Field(default=None, description="Numeric field of each item, for max_weight.")
    max_weight: float | None = Field(default=None, gt=0, description="Most weight of items in one batch.")
    pass_items_as: str = Field(
        default="reference",
        description="How a child run gets its items. reference: for batch flows. For other flows list:NAME or one:NAME "
        "(NAME is a parameter of the flow), or parameters (each item is an object of parameters).",
    )
    tags: list[str] = Field(default=[], description="Tags of each child run and of the task runs in it.")
    work_queue_name: str | None = Field(
        default=None, description="Work queue of the child runs; by default their deployment's."
    )
    job_variables: dict[str, Any] = Field(
        default={}, description="Job variables of each child run, as Prefect means them. No secrets."
    )
    batch_retries: int | None = Field(
        default=None,
        ge=0,
        le=20,
        description="New child runs for a batch whose run was lost (crashed, deleted, never started); by default 2, "
        "or 0 for flows that are no batch flows.",
    )
    isolate_crashing_items: bool = Field(
        default=True,
        description="Find the item that keeps killing its child run, fail it, and go on with the others.",
    )
    start_timeout_seconds: float = Field(
        default=600, gt=0, description="Seconds a child run may stay Pending; waiting for a free place does not count."
    )
    batch_timeout_seconds: float | None = Field(
        default=None, gt=0, description="Seconds a child run may be Running; then its batch is tried again."
    )
    max_requests_per_minute: int | None = Field(
        default=None,
        ge=20,
        description="Most requests to Prefect's API that this run makes in a minute; by default from the settings.",
    )
    on_parent_cancelled: OnParentCancelled = Field(
        default="cancel",
        description="When this run is cancelled or dies: cancel the child runs; or let them finish their batch and end the job (drain), or leave it to be resumed (abandon).",  # noqa: E501 - shown in one line
    )
    job_id: str | None = Field(
        default=None,
        description="Name of the job: letters, digits, dots, dashes, underscores. The same id again resumes the job.",
    )
    storage: str | None = Field(
        default=None,
        description="Folder, URL or block:TYPE/NAME under which the job's own folder lies; default: from the settings.",
    )

    @field_validator(
        "key",
        "select",
        "skip_succeeded_of",
        "group_by",
        "weight",
        "work_queue_name",
        "job_id",
        "storage",
        mode="before",
    )
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("enough_when", "fail_if", mode="before")
    @classmethod
    def _expression(cls, value: object, info: Any) -> object:
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        return str(parse(value, field=info.field_name)) if isinstance(value, (str, Switch)) else value

    @field_validator("job_id")
    @classmethod
    def _fit_job_id(cls, value: str | None) -> str | None:
        if value is not None:
            check_job_id(value)
        return value

    @field_validator("pass_items_as")
    @classmethod
    def _fit_pass_items_as(cls, value: str) -> str:
        parse_pass_items_as(value)
        return value


class JobSpec(Advanced):
    """All that defines a job, besides its items.

    Args:
        deployment: Full name of the batch deployment; or group value -> name, with `*` for every other group.
        kill_switch: Canonical expression; None for none.
    """

    deployment: str | dict[str, str]
    batch_size: int = Field(default=100, ge=1)
    max_in_flight: int = Field(default=8, ge=1, le=1000)
    kill_switch: str | None = str(DEFAULT_KILL_SWITCH)
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("kill_switch", mode="before")
    @classmethod
    def _kill_switch(cls, value: object) -> object:
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if isinstance(value, Mapping):
            value = Limits.model_validate(value)
        if isinstance(value, Limits):
            if value.max_failed is None and value.max_failed_rate is None:
                return None
            return str(from_limits(value.max_failed, value.max_failed_rate, value.min_sample))
        return str(parse(value)) if isinstance(value, (str, Switch)) else value

    @field_validator("deployment")
    @classmethod
    def _deployment(cls, value: str | dict[str, str]) -> str | dict[str, str]:
        for name in [value] if isinstance(value, str) else value.values():
            if name.count("/") != 1 or not all(part.strip() for part in name.split("/")) or not name.isprintable():
                raise ConfigurationError(
                    f"{_shown(name)} is not of the form flow-name/deployment-name; `prefect deployment ls` lists them",
                    field="deployment",
                )
        if not value:
            raise ConfigurationError("an empty mapping names no deployment", field="deployment")
        return value

    # ------------------------------------------------------------------ derived

    @property
    def deployments(self) -> dict[str | None, str]:
        """Deployment name by group; key None for every group that is not named."""
        if isinstance(self.deployment, str):
            return {None: self.deployment}
        return {None if group == EVERY_OTHER_GROUP else group: name for group, name in self.deployment.items()}

    @property
    def pass_items(self) -> PassItems:
        return parse_pass_items_as(self.pass_items_as)

    @property
    def retries(self) -> int:
        """`batch_retries`, or its default: a flow that is not ours may not be run twice unasked."""
        if self.batch_retries is not None:
            return self.batch_retries
        return 0 if self.pass_items.by_value else 2

    @property
    def effective_batch_size(self) -> int:
        return 1 if self.pass_items.kind in ("one", "parameters") else self.batch_size

    def switch(self, name: str) -> Switch | None:
        """The parsed `kill_switch`, `enough_when` or `fail_if`."""
        text = getattr(self, name)
        return parse(text, field=name) if text else None

    @property
    def stop_mode(self) -> StopMode:
        return StopMode(self.on_trip)

    def to_json(self) -> dict[str, Any]:
        """The part of the spec that must be the same for a job to be resumed."""
        return self.model_dump(mode="json", exclude={"job_id", "storage"})


def make_spec(**parameters: Any) -> JobSpec:
    """A spec from the parameters of `orchestrate()`.

    Raises:
        ConfigurationError: a parameter is unknown, wrongly typed or out of range; `field` names it.
        ExpressionError: an expression does not parse.
    """
    try:
        spec = JobSpec.model_validate({k: v for k, v in parameters.items() if v is not ...})
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("str", "dict"))) or None
        raise ConfigurationError(_problem(first), field=field) from e
    if spec.max_weight is not None and spec.weight is None:
        raise ConfigurationError("needs `weight`, the field that holds each item's weight", field="max_weight")
    if not isinstance(spec.deployment, str) and spec.group_by is None:
        raise ConfigurationError("a mapping of deployments needs `group_by`", field="deployment")
    for name in ("parameters", "job_variables"):
        try:
            json.dumps(getattr(spec, name), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as e:
            raise ConfigurationError(f"must be JSON: {e}", field=name) from e
        if (found := find_template(getattr(spec, name))) is not None:  # only now: a value may hold itself
            raise ConfigurationError(template_reason(found), field=name)
    return spec


def _problem(error: Mapping[str, Any]) -> str:
    """What pydantic found wrong, on one line."""
    if error["type"] == "extra_forbidden":
        fields = Limits.model_fields if len(error["loc"]) > 1 else JobSpec.model_fields
        near = difflib.get_close_matches(str(error["loc"][-1]), fields, n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(fields)}"
        return f"there is no such parameter; {hint}"
    return "is missing" if error["type"] == "missing" else f"{error['msg']}, got {_shown(error.get('input'))}"


def parse_pass_items_as(text: str) -> PassItems:
    """How items reach a child, from its text form.

    Raises:
        ConfigurationError: it is none of `reference`, `list:NAME`, `one:NAME`, `parameters`.
    """
    kind, _, name = text.partition(":")
    if kind in ("reference", "parameters") and not name:
        return PassItems(kind)
    if kind in ("list", "one") and name.isidentifier():
        return PassItems(kind, name)
    raise ConfigurationError(
        f"{_shown(text)} must be `reference`, `list:NAME`, `one:NAME` or `parameters`; NAME is a parameter of the flow",
        field="pass_items_as",
    )


def find_template(value: object, path: str = "$") -> str | None:
    """Where a `__prefect_kind` stands in a JSON value, None when nowhere.

    Prefect's server would not pass such a value on but interpret it: substitute a workspace variable, render a
    template, drop a list element. Source: utilities/schema_tools/hydration.py, 3.8.8, measured.
    """
    stack: list[tuple[object, str]] = [(value, path)]
    while stack:
        current, where = stack.pop()
        if isinstance(current, Mapping):
            if "__prefect_kind" in current:
                return where
            stack += [(v, f"{where}.{k}") for k, v in current.items()]
        elif isinstance(current, (list, tuple)):
            stack += [(v, f"{where}[{i}]") for i, v in enumerate(current)]
    return None


def template_reason(where: str) -> str:
    return (
        f"{where} holds a `__prefect_kind`, which Prefect's server would interpret as a template instead of passing it "
        "on; rename that field, or pass items by reference"
    )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields in which two specs differ: name -> (of the existing job, of this request)."""
    return {
        name: (theirs.get(name), ours.get(name))
        for name in sorted(set(theirs) | set(ours))
        if theirs.get(name) != ours.get(name)
    }


def _shown(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
