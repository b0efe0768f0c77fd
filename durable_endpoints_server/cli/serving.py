"""`durable-endpoints serve` and `dev`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from durable_endpoints.protocol import setting_values
from durable_endpoints.protocol.durations import parse_duration
from durable_endpoints_server.settings import PREFIX, SETTINGS, ServerSettings, Setting
from durable_endpoints_server.store.location import sqlite_path

_EVERYWHERE = ("0.0.0.0", "::", "")
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(ServerSettings)}
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000))


def _with_settings(command: Callable[..., None], dev: bool) -> Callable[..., None]:
    """Give a command a flag for each setting."""
    for setting in reversed(SETTINGS):
        if not (dev and setting.is_key):
            command = _flag(setting)(command)
    return click.option(
        "--config",
        envvar=f"{PREFIX}CONFIG",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help='A TOML file with settings, as in: lease = "30s". Flags and variables '
        f"({PREFIX}…) come before it.",
    )(command)


def _flag(setting: Setting) -> Callable[[Callable[..., None]], Callable[..., None]]:
    default = _shown(setting)
    about = f"{setting.help} [{default}]" if default else setting.help
    if setting.parse is setting_values.flag:
        return click.option(setting.flag, setting.name, is_flag=True, default=None, help=about)
    return click.option(
        *(setting.flag, setting.name),
        multiple=bool(setting.singular),
        default=None,
        metavar="…",
        help=about,
    )


def _shown(setting: Setting) -> str:
    """A default, as people write it."""
    default = _DEFAULTS[setting.name]
    if default in (None, (), False):
        return ""
    if setting.parse in (parse_duration, setting_values.interval):
        return next(f"{default // size}{unit}" for unit, size in _UNITS if default % size == 0)
    return str(default)


def _serve(settings: ServerSettings, announce: Callable[[ServerSettings, str], None]) -> None:
    from durable_endpoints_server.serving import serve as run

    def ready(port: int) -> None:
        host = socket.gethostname() if settings.host in _EVERYWHERE else settings.host
        host = f"[{host}]" if ":" in host else host
        announce(settings, f"http://{host}:{port}")

    run(settings, ready)


@click.command("serve")
@partial(_with_settings, dev=False)
def serve(config: Path | None, **given: Any) -> None:
    """Serve applications, with keys: the engine as a server of its own.

    Needs a signing key, which the applications have too; without one it says how to make it. Runs
    survive restarts of this server and of the applications.
    """
    _serve(ServerSettings.load(False, given, os.environ, config), _announce_server)


@click.command("dev")
@partial(_with_settings, dev=True)
def dev(config: Path | None, **given: Any) -> None:
    """Serve applications on this machine, without keys, while you develop them."""
    _serve(ServerSettings.load(True, given, os.environ, config), _announce_development)


def _announce_server(settings: ServerSettings, url: str) -> None:
    click.echo(
        f"durable-endpoints {version('durable-endpoints')} serves {url}\n"
        f"  data         {sqlite_path(settings.database)}\n"
        f"  applications {PREFIX}SERVER_URL={url}\n"
        f"               {PREFIX}SIGNING_KEY=…   the same as here\n"
        f"               {PREFIX}SEALING_KEY=…   one of their own: openssl rand -hex 32\n"
        f"  runs         durable-endpoints runs list --server {url}"
    )


def _announce_development(settings: ServerSettings, url: str) -> None:
    click.echo(
        f"durable-endpoints {version('durable-endpoints')} for development: {url}, without keys\n"
        f"  data         {sqlite_path(settings.database)}\n"
        f"  application  {PREFIX}SERVER_URL={url} uvicorn main:app\n"
        f"  with Inngest's SDK: INNGEST_DEV={url}\n"
        f"  runs         durable-endpoints runs list --server {url}\n"
        "Ctrl-C stops it; runs that are not finished go on at its next start."
    )
