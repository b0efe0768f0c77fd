"""Settings of a companion server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Everything that is set once per server. Durations in milliseconds, sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = 8288
    database: str = "sqlite:///.durable/server.db"
    dev: bool = False
    """For development: no keys, and callers from this machine only."""
    signing_keys: tuple[str, ...] = ()
    """The first one signs, all are accepted."""
    event_keys: tuple[str, ...] = ()
    """Who may send events at `/e/{key}`."""
    app_origins: tuple[str, ...] = ()
    """Origins of applications that may be called back over HTTP: `https://api.example.com`."""
    retry_interval: int | None = None
    """Between the tries of other SDKs' steps; None for Inngest's table."""
    lease: int = 30_000
    """How long a process may be silent until its runs go on in another one."""
    heartbeat: int = 5_000
    """How often it says that it lives."""
    abandon_after: int = 2 * 3_600_000
    """How long a request of another SDK may be silent until its run is given up."""
    retention: int = 7 * 86_400_000
    event_retention: int = 86_400_000
    max_executions: int = 100
    drain_timeout: int = 10_000
