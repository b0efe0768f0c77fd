"""How a command ends that cannot do its work: with status 1, and the reason on stderr."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from durable_endpoints.protocol.errors import DurableEndpointsError


def fail(message: str) -> NoReturn:
    """End with status 1 and the reason on stderr."""
    click.secho(f"Error: {message}", fg="red", err=True)
    sys.exit(1)


class ExplainingGroup(click.Group):
    """Turns the package's own errors into one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DurableEndpointsError as error:
            fail(error.explanation)
        except UnicodeEncodeError as error:
            fail(f"{error.object!r} is not UTF-8")
