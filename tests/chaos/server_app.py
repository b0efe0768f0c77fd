"""A companion server for the process tests: quick to see that a process is gone."""

from __future__ import annotations

import os
from pathlib import Path

from starlette.applications import Starlette

from durable_endpoints_server.app import create_app
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.sqlite import SqliteStore

LEASE = 1_500
"""Milliseconds, if `SERVER_LEASE` names no other."""


def server() -> Starlette:
    """For `uvicorn --factory`."""
    lease = int(os.environ.get("SERVER_LEASE", LEASE))
    settings = ServerSettings(dev=True, lease=lease, heartbeat=300)
    return create_app(Server(settings, SqliteStore(Path(os.environ["SERVER_DATABASE"]))))
