"""Every flag, once: its name, its environment variable, its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from cyclopts import Group, Parameter, Token, convert

JOB = Group("The job", sort_key=1)
ITEMS = Group("Items and batches", sort_key=2)
STOP = Group("When to stop", sort_key=3)
PLACE = Group("Where", sort_key=4)
OUTPUT = Group("Output", sort_key=5)


def flag(name: str, help: str, *, group: Group, env: str | None = None, **more: Any) -> Parameter:  # noqa: A002
    """A named flag; its environment variable is `ORCHESTRATOR_` and the name, unless another is given."""
    variable = env or "ORCHESTRATOR_" + name.removeprefix("--").replace("-", "_").upper()
    more.setdefault("converter", _converted)
    return Parameter(name=name, help=help, env_var=variable, group=group, negative="", **more)


def _converted(kind: Any, tokens: Sequence[Token]) -> Any:
    """As cyclopts would, but a whole number is one: `1.5` is not rounded."""
    if int in (kind, *get_args(kind)) and any("." in token.value for token in tokens):
        raise ValueError
    return convert(kind, tokens)


JobArgument = Annotated[str, Parameter(help="The job's id, as `run` printed it.", group=JOB)]

Deployment = Annotated[
    str | None,
    flag(
        "--deployment",
        "The batch deployment, `flow-name/deployment-name`; or a JSON mapping from `--group-by` values to such names.",
        group=JOB, env="ORCHESTRATOR_BATCH_DEPLOYMENT",
    ),
]  # fmt: skip
Items = Annotated[
    str | None,
    flag(
        "--items",
        "Path or URL (.txt .csv .json .jsonl .parquet), `glob:PATTERN`, `range:A:B`, `python:MODULE:CALLABLE`, "
        "`job:ID?outcome=failed`, `results:ID` (or `results:nightly-*`), or `-` for JSON Lines on stdin.",
        group=JOB,
        allow_leading_hyphen=True,
    ),
]
RequestsPerMinute = Annotated[
    int | None,
    flag(
        "--requests-per-minute",
        "A limit that the server sets for everybody who shares it, as Prefect Cloud does: what it means for this job.",
        group=OUTPUT,
    ),
]
BatchSeconds = Annotated[
    float,
    flag("--batch-seconds", "How long a batch is taken to run, for `--requests-per-minute`.", group=OUTPUT),
]
JobId = Annotated[
    str | None,
    flag("--job-id", "The job's id; the same id and the same job resumes. By default a random one.", group=JOB),
]
Params = Annotated[
    list[str] | None,
    flag(
        "--param", "NAME=VALUE passed to every child run besides its items; JSON where it is JSON. Repeatable.",
        group=JOB,
    ),
]  # fmt: skip
PassItemsAs = Annotated[
    str | None,
    flag(
        "--pass-items-as",
        "`reference` (batch flows); for other flows `list:NAME`, `one:NAME` or `parameters`.",
        group=JOB,
    ),
]
MaxInFlight = Annotated[int | None, flag("--max-in-flight", "Most child runs at once. Default 8.", group=JOB)]
MaxRequestsPerMinute = Annotated[
    int | None,
    flag("--max-requests-per-minute", "Most requests to Prefect's API that the parent makes in a minute.", group=JOB),
]
Tags = Annotated[list[str] | None, flag("--tag", "A tag for every child run. Repeatable.", group=JOB)]
SkipSucceededOf = Annotated[
    str | None,
    flag(
        "--skip-succeeded-of",
        "Leave out items, by key, that succeeded in that job (`nightly-*`: in any of them).",
        group=ITEMS,
    ),
]

BatchSize = Annotated[int | None, flag("--batch-size", "Items per child run. Default 100.", group=ITEMS)]
MaxBytes = Annotated[int | None, flag("--max-bytes", "Most bytes of items, as JSON, per child run.", group=ITEMS)]
Weight = Annotated[str | None, flag("--weight", "Field of an item that says how heavy it is.", group=ITEMS)]
MaxWeight = Annotated[float | None, flag("--max-weight", "Most weight per child run.", group=ITEMS)]
GroupBy = Annotated[
    str | None, flag("--group-by", "Field whose equal adjacent values share child runs of their own.", group=ITEMS)
]
Select = Annotated[str | None, flag("--select", "Pass this field of each item instead of the whole.", group=ITEMS)]
Key = Annotated[str | None, flag("--key", "Field that labels an item for people. Default: its number.", group=ITEMS)]

KillSwitch = Annotated[
    str | None,
    flag("--kill-switch", "Expression that stops the job, e.g. `failed >= 10 or failed_rate > 0.05`.", group=STOP),
]
OnTrip = Annotated[
    Literal["cancel", "drain"] | None,
    flag("--on-trip", "What a tripped kill switch does to running child runs. Default cancel.", group=STOP),
]
EnoughWhen = Annotated[str | None, flag("--enough-when", "Expression that ends the job early and well.", group=STOP)]
FailIf = Annotated[
    str | None,
    flag("--fail-if", "Expression that makes a finished job failed. Default: any item not succeeded.", group=STOP),
]

Reason = Annotated[str, flag("--reason", "Why; shown to everybody who looks at the job.", group=STOP)]

Storage = Annotated[
    str | None,
    flag(
        "--storage",
        "fsspec URL or block:TYPE/NAME under which job folders lie. Default: a folder in PREFECT_HOME.",
        group=PLACE,
    ),
]
Json = Annotated[bool, flag("--json", "Print the result as JSON.", group=OUTPUT)]
Detach = Annotated[
    bool,
    flag("--detach", "Stage the items, hand the job to the deployed parent, and return at once.", group=OUTPUT),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class JobFlags:
    """The flags that say what a job is; `run` and `plan` share them."""

    deployment: Deployment = None
    items: Items = None
    max_in_flight: MaxInFlight = None
    max_requests_per_minute: MaxRequestsPerMinute = None
    param: Params = None
    pass_items_as: PassItemsAs = None
    tag: Tags = None
    job_id: JobId = None
    batch_size: BatchSize = None
    max_bytes: MaxBytes = None
    weight: Weight = None
    max_weight: MaxWeight = None
    group_by: GroupBy = None
    select: Select = None
    key: Key = None
    skip_succeeded_of: SkipSucceededOf = None
    kill_switch: KillSwitch = None
    on_trip: OnTrip = None
    enough_when: EnoughWhen = None
    fail_if: FailIf = None
    storage: Storage = None
