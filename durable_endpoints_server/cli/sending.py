"""`durable-endpoints events send` and `signals send`."""

from __future__ import annotations

import click
import orjson

from durable_endpoints.protocol.events import check_event, check_signal
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints_server.cli.failing import fail
from durable_endpoints_server.cli.places import Place, place_options


@click.group()
def events() -> None:
    """Send events."""


@events.command("send")
@place_options
@click.argument("name")
@click.argument("data", default="{}")
@click.option("--id", "event_id", help="Counts once within retention. Default: a new one.")
def send_event(place: Place, name: str, data: str, event_id: str | None) -> None:
    """Send an event NAME with DATA (JSON) to the runs that wait for it."""
    from ulid import ULID

    encoded = _json(data)
    event_id = str(ULID()) if event_id is None else event_id
    try:
        check_event(name, event_id, None, encoded)
    except (ValueError, TypeError) as error:
        fail(str(error))
    click.echo(place.send_event(NewEvent(event_id, name, encoded, None)))


@click.group()
def signals() -> None:
    """Send signals."""


@signals.command("send")
@place_options
@click.argument("name")
@click.argument("data", default="null")
def send_signal(place: Place, name: str, data: str) -> None:
    """Send a signal NAME with DATA (JSON) to the one run that waits for it."""
    encoded = _json(data)
    try:
        check_signal(name, encoded)
    except ValueError as error:
        fail(str(error))
    click.echo(place.send_signal(name, encoded))


def _json(text: str) -> bytes:
    try:
        return orjson.dumps(orjson.loads(text))
    except ValueError as error:
        fail(f"the data is not JSON: {error}")
