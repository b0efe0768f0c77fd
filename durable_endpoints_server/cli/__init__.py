"""The command line: serve, look at runs, retry and cancel them, send events, see the demo."""

from __future__ import annotations

import click

from durable_endpoints_server.cli.demo import demo
from durable_endpoints_server.cli.failing import ExplainingGroup
from durable_endpoints_server.cli.runs import requests, runs
from durable_endpoints_server.cli.sending import events, signals
from durable_endpoints_server.cli.serving import dev, serve


@click.group(cls=ExplainingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="durable-endpoints")
def main() -> None:
    """Durable HTTP endpoints for Starlette and FastAPI."""


for command in (serve, dev, runs, events, signals, requests, demo):
    main.add_command(command)
