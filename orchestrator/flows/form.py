"""The form of `orchestrate/default`: what the Prefect UI draws, and how what comes back from it is read.

Some things make a form that is short and speaks plainly, in both UIs of Prefect 3.8:

* A union is drawn as tabs named by the titles of its members; with a discriminator one of the UIs draws a JSON editor
  instead, so the sources are told apart by their fields.
* A schema without a type is drawn as a JSON editor: a list to paste, instead of one editor per item.
* `X | None` is drawn as a pair of tabs. A field that may stay empty is therefore shown as a plain X without a default;
  Prefect then takes null for it too.
* A group with default None is folded away behind its tab.

Source: seen in both UIs, and prefect utilities/schema_tools/validation.py `_fix_null_typing`, 3.8.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from orchestrator.errors import ConfigurationError
from orchestrator.flows.request import Advanced, Limits

DeploymentField = (
    Annotated[str, Field(title="One deployment")]
    | Annotated[dict[str, str], WithJsonSchema({"title": "One for each group"})]
)
KillSwitchField = Annotated[str, Field(title="Expression")] | Limits | Annotated[None, Field(title="None")]
AdvancedField = Annotated[None, Field(title="Defaults")] | Advanced


def _open_schema(schema: dict[str, Any]) -> None:
    """Programs may give `kind` as well, as `Source.describe()` does; unknown fields are refused when it is read."""
    schema.pop("additionalProperties", None)


class _Source(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra=_open_schema, field_title_generator=lambda name, _: name, strict=True
    )
    kind: ClassVar[str]
    mark: ClassVar[str]  # the field by which it is told from the others

    def to_json(self) -> dict[str, Any]:
        """As `store.as_source` takes it."""
        return {"kind": self.kind, **self.model_dump()}


class File(_Source):
    """One item per line or row of a file: text, CSV, JSON, JSON Lines or Parquet."""

    model_config = ConfigDict(title="File")
    kind, mark = "file", "path"
    path: str = Field(description="Path or URL (s3://...); its suffix says the format: .txt .csv .json .jsonl .parquet")


class Glob(_Source):
    """One item per file that matches a pattern: its path."""

    model_config = ConfigDict(title="File paths")
    kind, mark = "glob", "pattern"
    pattern: str = Field(description="For example /data/videos/*.mp4 or s3://bucket/images/**")


class Inline(_Source):
    """A short list, written here."""

    model_config = ConfigDict(title="List")
    kind, mark = "inline", "items"
    items: Annotated[list[Any], WithJsonSchema({})] = Field(
        description='A JSON list, for example ["a.jpg", "b.jpg"] or [1, 2, 3]; long ones belong in a file.'
    )


class Range(_Source):
    """Whole numbers, one item each."""

    model_config = ConfigDict(title="Range")
    kind, mark = "range", "stop"
    start: int = Field(default=0, description="The first number.")
    stop: int = Field(description="One above the last number.")


class Python(_Source):
    """What a Python function yields."""

    model_config = ConfigDict(title="Python")
    kind, mark = "python", "callable"
    callable: str = Field(
        description="module:function. The module must be named in ORCHESTRATOR_PYTHON_SOURCES where this run works."
    )


class JobItems(_Source):
    """Items of an earlier job that are left to do."""

    model_config = ConfigDict(title="Left by a job")
    kind, mark = "job", "job"
    job: str = Field(description="Id of the earlier job.")
    outcome: list[Literal["failed", "unknown", "not_started", "succeeded"]] = Field(
        default=["failed", "unknown", "not_started"], description="Which of its items."
    )
    again: bool = Field(default=False, description="Also items that another job was given already.")


class Results(_Source):
    """What the items of an earlier job returned."""

    model_config = ConfigDict(title="Results of a job")
    kind, mark = "results", "results_of"
    results_of: str = Field(description="Id of the earlier job, or nightly-* for all of a series.")

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "job": self.results_of}


class Resume(_Source):
    """Go on with a job whose run died: its own items and settings hold; of this form only the storage is read."""

    model_config = ConfigDict(title="Resume a job")
    kind, mark = "resume", "resume"
    resume: str = Field(description="Id of the job.")


SOURCES: tuple[type[_Source], ...] = (File, Glob, Inline, Range, Python, JobItems, Results, Resume)
ItemsField = File | Glob | Inline | Range | Python | JobItems | Results | Resume


@dataclass(frozen=True)
class Asked:
    """What a form asks for.

    Args:
        items: As `store.as_source` takes them; None to resume.
        resume: Id of the job to resume; None for a new one.
    """

    items: Any
    resume: str | None


def read_items(value: Any) -> Asked:
    """What the form's `items` mean.

    Raises:
        ConfigurationError: no source can be read from them; `field` names the place.
    """
    if isinstance(value, Resume):
        return Asked(None, value.resume)
    if isinstance(value, _Source):
        return Asked(value.to_json(), None)
    if not isinstance(value, Mapping) or "kind" in value:
        if not value:
            raise _no_source()
        return Asked(value, None)  # as a program gives them
    source = next((s for s in SOURCES if value.get(s.mark) not in (None, "")), None)
    if source is None:
        raise _no_source()
    return read_items(_validated(source, value, "items"))


def read_advanced(value: Any) -> dict[str, Any]:
    """The form's `advanced` as parameters of a job, those left empty at their defaults.

    Raises:
        ConfigurationError: a field is unknown or wrong; `field` names it.
    """
    if value is None:
        value = {}
    if isinstance(value, Mapping):
        value = _validated(Advanced, {k: v for k, v in value.items() if v is not None or k == "fail_if"}, "advanced")
    if not isinstance(value, Advanced):
        raise ConfigurationError("must be a group of fields", field="advanced")
    return value.model_dump()


def _validated(model: type[BaseModel], value: Mapping[str, Any], field: str) -> BaseModel:
    try:
        return model.model_validate(dict(value))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place = ".".join([field, *map(str, first["loc"])])
        raise ConfigurationError(f"{first['msg']}, got {str(first.get('input'))[:80]!r}", field=place) from e


def _no_source() -> ConfigurationError:
    fields = ", ".join(f"{s.mark} ({s.model_config.get('title')})" for s in SOURCES)
    return ConfigurationError(f"say where they come from; give one of {fields}", field="items")
