"""`durable-endpoints runs …` and `requests`: look at what happened, retry and cancel."""

from __future__ import annotations

from typing import NoReturn

import click

from durable_endpoints_server import report
from durable_endpoints_server.cli.failing import fail
from durable_endpoints_server.cli.places import Place, place_options
from durable_endpoints_server.clock import SystemClock
from durable_endpoints_server.engine.model import Status

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_limit_option = click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1, 10_000)
)


@click.group()
def runs() -> None:
    """List, show, retry and cancel runs."""


@runs.command("list")
@place_options
@_json_option
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.label for status in Status]),
    help="Only runs in this state. Repeatable.",
)
@click.option("--function", "function_id", help='Only runs of this endpoint, as in "POST /report".')
@click.option("--before", metavar="RUN_ID", help="Only runs that began before this one.")
@_limit_option
def list_runs(
    place: Place,
    as_json: bool,
    statuses: tuple[str, ...],
    function_id: str | None,
    before: str | None,
    limit: int,
) -> None:
    """The newest runs first. Where few of very many runs are wanted, it stops looking after some
    seconds, and says how to go on."""
    found, following = place.list_runs(statuses, function_id, limit, before)
    click.echo(
        report.as_json(found) if as_json else report.table_of_runs(found, SystemClock().now())
    )
    if following is not None and len(found) < limit:
        click.echo(f"Older runs were not looked at: go on with --before {following}", err=True)


@runs.command("show")
@place_options
@_json_option
@click.argument("run_id")
def show(place: Place, as_json: bool, run_id: str) -> None:
    """One run: where it stands, its steps, its failed tries. Requests and responses stay sealed."""
    full = place.run(run_id)
    if full is None:
        _fail_for_unknown(place, run_id)
    click.echo(report.as_json(full) if as_json else report.page_of_run(full))


@runs.command("stream")
@place_options
@_json_option
@click.argument("run_id")
def stream(place: Place, as_json: bool, run_id: str) -> None:
    """What a run has streamed: every try of every step, with what was committed and withdrawn."""
    lines = place.stream(run_id)
    if lines is None:
        _fail_for_unknown(place, run_id)
    click.echo(report.as_json(lines) if as_json else report.page_of_stream(lines))


@runs.command("retry")
@place_options
@click.argument("run_id")
def retry(place: Place, run_id: str) -> None:
    """Give a parked run another chance."""
    status = _status(place, run_id)
    if status is not Status.PARKED:
        fail(
            f"run {run_id} is {status.label}: only a parked run can be retried. A run that has "
            "ended keeps its one answer; send the request again for another"
        )
    click.echo(place.retry(run_id))


@runs.command("cancel")
@place_options
@click.argument("run_id")
def cancel(place: Place, run_id: str) -> None:
    """End a run without a result."""
    status = _status(place, run_id)
    if status.is_final:
        fail(f"run {run_id} has ended already ({status.label})")
    click.echo(place.cancel(run_id))


@click.command("requests")
@place_options
@_json_option
@_limit_option
def requests(place: Place, as_json: bool, limit: int) -> None:
    """The newest HTTP requests, of applications that track all endpoints."""
    found = place.requests(limit)
    click.echo(report.as_json(found) if as_json else report.table_of_requests(found))


def _status(place: Place, run_id: str) -> Status:
    status = place.status(run_id)
    if status is None:
        _fail_for_unknown(place, run_id)
    return status


def _fail_for_unknown(place: Place, run_id: str) -> NoReturn:
    fail(f"there is no run {run_id} in {place.name}")
