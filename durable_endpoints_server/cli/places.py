"""Where a command looks, and whom it asks: a database, or a server."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol

import click
from click.core import ParameterSource

from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.location import DEFAULT_DATABASE


class Place(Protocol):
    """What commands want of an engine. All of it may raise `DurableEndpointsError`; runs and lines
    come in the form that `report` gives them."""

    name: str
    """As a message says it: a path, or a URL."""

    def list_runs(
        self, statuses: Sequence[str], function_id: str | None, limit: int, before: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """The newest runs first, of those before the run `before`; in any state if there are no
        `statuses`. With where to go on, if there may be more."""
        ...

    def run(self, run_id: str) -> dict[str, Any] | None:
        """A run with all that may be shown of it. None if there is none."""
        ...

    def status(self, run_id: str) -> Status | None:
        """Where a run stands. None if there is none."""
        ...

    def stream(self, run_id: str) -> list[dict[str, Any]] | None:
        """What a run has streamed. None if there is no such run."""
        ...

    def requests(self, limit: int) -> list[dict[str, Any]]:
        """The newest tracked requests first."""
        ...

    def retry(self, run_id: str) -> str:
        """Give a parked run another chance. Returns what has come of it, in words."""
        ...

    def cancel(self, run_id: str) -> str:
        """End a run without a result. Returns what has come of it, in words."""
        ...

    def send_event(self, event: NewEvent) -> str:
        """Send an event that was checked, and return its id."""
        ...

    def send_signal(self, name: str, data: bytes) -> str:
        """Send a signal that was checked. Returns what has come of it, in words."""
        ...


def place_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--server` and `--database`, and as its first argument what they name."""

    @click.option(
        "--server",
        metavar="URL",
        envvar="DURABLE_ENDPOINTS_SERVER_URL",
        help="The server that the applications use. Its key is read from "
        "DURABLE_ENDPOINTS_SIGNING_KEY.",
    )
    @click.option(
        "--database",
        envvar="DURABLE_ENDPOINTS_DATABASE",
        default=DEFAULT_DATABASE,
        show_default=True,
        help="The database of an application without a server, or the server's own.",
    )
    @click.pass_context
    @wraps(command)
    def with_place(
        ctx: click.Context, /, server: str | None, database: str, **options: Any
    ) -> None:
        command(_place(ctx, server, database), **options)

    return with_place


def _place(ctx: click.Context, server: str | None, database: str) -> Place:
    """What the command line names, else what the environment does: a server before a database, as
    for an application."""
    is_typed = {
        name: ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for name in ("server", "database")
    }
    if all(is_typed.values()):
        raise click.UsageError("--server and --database exclude each other.")
    if server and not is_typed["database"]:
        from durable_endpoints_server.cli.server_place import ServerPlace

        return ServerPlace(server, os.environ)
    from durable_endpoints_server.cli.database_place import DatabasePlace

    return DatabasePlace(database)
