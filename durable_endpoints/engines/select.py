"""Which engine the settings of an application name: one in its own process, or one at a server.

Engines are imported when they are needed: who uses a server pays for no database.
"""

from __future__ import annotations

import sys

from durable_endpoints.engines.base import Engine
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints.settings import Settings

_AT_SERVERS = "durable_endpoints.engines.remote.engine"
"""The module that every engine at a server was imported after."""


def engine_for(settings: Settings) -> Engine:
    """The engine of this process for these settings. Whether a server speaks our own wire, its
    start finds out: `ForeignServerError` says that it does not, and `foreign_engine_for` is to be
    used."""
    if settings.server_url is None:
        from durable_endpoints.engines.embedded import embedded_engine

        return embedded_engine(settings)
    from durable_endpoints.engines.remote.engine import remote_engine

    return remote_engine(settings)


def foreign_engine_for(settings: Settings) -> Engine:
    """The engine for a server that does not speak our own wire: Inngest's, or one like it."""
    from durable_endpoints.engines.inngest.engine import inngest_engine

    return inngest_engine(settings)


def running_engine(settings: Settings) -> Engine | None:
    """The engine that runs in this process: the only one of its kind, or the one of these
    settings. An application may name its server itself, where these settings name none."""
    if settings.server_url is None:
        from durable_endpoints.engines.embedded import running_engine

        engine = running_engine(settings)
        if engine is not None or _AT_SERVERS not in sys.modules:
            return engine
    from durable_endpoints.engines.inngest.engine import running_inngest_engine
    from durable_endpoints.engines.remote.engine import running_remote_engine

    return running_remote_engine(settings) or running_inngest_engine(settings)


def leave_event(settings: Settings, event: NewEvent) -> None:
    """Send an event from a process that runs no application. Blocks until it is on disk.

    Raises `ConfigurationError` if there is nowhere to send it, `StorageError` if it is not kept.
    """
    if settings.server_url is None:
        from durable_endpoints.engines.embedded import leave_event

        leave_event(settings, event)
    else:
        from durable_endpoints.engines.remote.calling import post_event

        post_event(settings, event)


def leave_signal(settings: Settings, name: str, data: bytes) -> bool | None:
    """Send a signal from a process that runs no application; None where that is not possible.
    Blocks until it is known whether a run has taken it.

    Raises `StorageError` if that cannot be said.
    """
    if settings.server_url is None:
        return None
    from durable_endpoints.engines.remote.calling import post_signal

    return post_signal(settings, name, data)
