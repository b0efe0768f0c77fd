"""The command line: look at runs, retry and cancel them, send events, see the demo."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import orjson

from durable_endpoints.protocol.errors import DurableEndpointsError
from durable_endpoints.protocol.events import check_event
from durable_endpoints_server import report
from durable_endpoints_server.clock import SystemClock
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.base import RunSummary
from durable_endpoints_server.store.location import DEFAULT_DATABASE, sqlite_path
from durable_endpoints_server.store.ownership import DispatcherRole
from durable_endpoints_server.store.sqlite_inbox import leave_message
from durable_endpoints_server.store.sqlite_reader import SqliteReader

_PATIENCE = 5.0
"""Seconds to wait for the application to carry out what was asked of it."""


def fail(message: str) -> NoReturn:
    """End with status 1 and the reason on stderr."""
    click.secho(f"Error: {message}", fg="red", err=True)
    sys.exit(1)


class _Group(click.Group):
    """Turns the package's own errors into one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DurableEndpointsError as error:
            fail(error.explanation)
        except UnicodeEncodeError as error:
            fail(f"{error.object!r} is not UTF-8")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="durable-endpoints")
def main() -> None:
    """Durable HTTP endpoints for Starlette and FastAPI."""


def _database_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--database",
        envvar="DURABLE_ENDPOINTS_DATABASE",
        default=DEFAULT_DATABASE,
        show_default=True,
        help="The application's database.",
    )(command)


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def _existing(database: str) -> Path:
    path = sqlite_path(database)
    if not path.exists():
        fail(f"there is no database at {path}; name the application's with --database")
    return path


def _read(path: Path, ask: Callable[[SqliteReader], Any]) -> Any:
    async def work() -> Any:
        reader = SqliteReader(path)
        try:
            return await ask(reader)
        finally:
            reader.close_readers()

    return asyncio.run(work())


@main.group()
def runs() -> None:
    """List, show, retry and cancel runs."""


@runs.command("list")
@_database_option
@_json_option
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.label for status in Status]),
    help="Only runs in this state. Repeatable.",
)
@click.option("--function", "function_id", help='Only runs of this endpoint, as in "POST /report".')
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10_000))
def list_runs(
    database: str, as_json: bool, statuses: tuple[str, ...], function_id: str | None, limit: int
) -> None:
    """The newest runs first."""
    wanted = [status for status in Status if not statuses or status.label in statuses]
    found: list[RunSummary] = _read(
        _existing(database), lambda reader: reader.list_runs(wanted, function_id, limit)
    )
    if as_json:
        click.echo(report.as_json([report.summary(line) for line in found]))
    else:
        click.echo(report.table_of_runs(found, SystemClock().now()))


@runs.command("show")
@_database_option
@_json_option
@click.argument("run_id")
def show(database: str, as_json: bool, run_id: str) -> None:
    """One run: where it stands, its steps, its failed tries. Requests and responses stay sealed."""
    path = _existing(database)

    async def ask(reader: SqliteReader) -> dict[str, Any] | None:
        return await report.run_in_full(reader, run_id)

    full = _read(path, ask)
    if full is None:
        fail(f"there is no run {run_id} in {path}")
    click.echo(report.as_json(full) if as_json else report.page_of_run(full))


@runs.command("stream")
@_database_option
@_json_option
@click.argument("run_id")
def stream(database: str, as_json: bool, run_id: str) -> None:
    """What a run has streamed: every try of every step, with what was committed and withdrawn."""
    path = _existing(database)

    async def ask(reader: SqliteReader) -> list[dict[str, Any]] | None:
        return await report.stream_of_run(reader, run_id)

    lines = _read(path, ask)
    if lines is None:
        fail(f"there is no run {run_id} in {path}")
    click.echo(report.as_json(lines) if as_json else report.page_of_stream(lines))


@runs.command("retry")
@_database_option
@click.argument("run_id")
def retry(database: str, run_id: str) -> None:
    """Give a parked run another chance."""
    path = _existing(database)
    status = _status(path, run_id)
    if status is not Status.PARKED:
        fail(
            f"run {run_id} is {status.label}: only a parked run can be retried. A run that has "
            "ended keeps its one answer; send the request again for another"
        )
    _ask_for(path, "retry", run_id, lambda now: now is not Status.PARKED)


@runs.command("cancel")
@_database_option
@click.argument("run_id")
def cancel(database: str, run_id: str) -> None:
    """End a run without a result."""
    path = _existing(database)
    status = _status(path, run_id)
    if status.is_final:
        fail(f"run {run_id} has ended already ({status.label})")
    _ask_for(path, "cancel", run_id, lambda now: now.is_final)


@main.group()
def events() -> None:
    """Send events."""


@events.command("send")
@_database_option
@click.argument("name")
@click.argument("data", default="{}")
@click.option("--id", "event_id", help="Counts once within retention. Default: a new one.")
def send(database: str, name: str, data: str, event_id: str | None) -> None:
    """Send an event NAME with DATA (JSON) to the runs that wait for it."""
    from ulid import ULID

    try:
        decoded = orjson.loads(data)
    except ValueError as error:
        fail(f"the data is not JSON: {error}")
    event_id = str(ULID()) if event_id is None else event_id
    try:
        check_event(name, event_id, None, orjson.dumps(decoded))
    except (ValueError, TypeError) as error:
        fail(str(error))
    path = _existing(database)
    message = {"id": event_id, "name": name, "data": decoded, "ts": None}
    leave_message(path, SystemClock().now(), "event", orjson.dumps(message))
    click.echo(event_id)


@main.command("requests")
@_database_option
@_json_option
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10_000))
def requests(database: str, as_json: bool, limit: int) -> None:
    """The newest HTTP requests, of applications that track all endpoints."""
    found = _read(_existing(database), lambda reader: reader.requests(limit))
    if as_json:
        click.echo(report.as_json([line._asdict() for line in found]))
    else:
        click.echo(report.table_of_requests(found))


@main.command("demo")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--keep", is_flag=True, help="Keep the demo's database, and say where it is.")
@click.option(
    "--llm-url",
    metavar="URL",
    help="Let a language model write the digest: the base URL of any OpenAI-compatible server, "
    "such as http://localhost:11434/v1. Its key, if any, is read from OPENAI_API_KEY.",
)
@click.option("--model", metavar="NAME", help="The model to ask there.")
def demo(file: str | None, keep: bool, llm_url: str | None, model: str | None) -> None:
    """Digest a text file durably, and kill the application in the middle of it.

    FILE is any text; the default is one that comes with the package. The digest is streamed while
    it is written.
    """
    from durable_endpoints.demo.driver import run_demo
    from durable_endpoints.demo.llm import Llm

    if bool(llm_url) != bool(model):
        raise click.UsageError("--llm-url and --model go together.")
    llm = Llm(llm_url, model) if llm_url and model else None
    sys.exit(run_demo(Path(file) if file else None, keep, llm))


def _status(path: Path, run_id: str) -> Status:
    run = _read(path, lambda reader: reader.run(run_id))
    if run is None:
        fail(f"there is no run {run_id} in {path}")
    status: Status = run.status
    return status


def _ask_for(path: Path, kind: str, run_id: str, done: Callable[[Status], bool]) -> None:
    """Leave a message, and wait a moment for the application to carry it out."""
    message = orjson.dumps({"run_id": run_id})
    leave_message(path, SystemClock().now(), kind, message)
    if not DispatcherRole(path).is_held_elsewhere:
        click.echo(f"No application serves {path} now. It will {kind} the run when one starts.")
        return
    deadline = time.monotonic() + _PATIENCE
    while not done(status := _status(path, run_id)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if done(status):
        click.echo(f"{run_id} is {status.label} now.")
    else:
        click.echo(f"The application was asked to {kind} {run_id}; it is {status.label} still.")
