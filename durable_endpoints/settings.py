"""Settings of the SDK: keyword arguments of the middleware, else the environment, else defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict
from urllib.parse import urlsplit

from durable_endpoints.errors import ConfigurationError
from durable_endpoints.options import OPTIONS, unknown_option
from durable_endpoints.protocol import setting_values
from durable_endpoints.protocol.durations import Duration, parse_duration
from durable_endpoints.protocol.urls import without_credentials

PREFIX = "DURABLE_ENDPOINTS_"


class SettingsArguments(TypedDict, total=False):
    """The settings as keyword arguments: durations as people write them. See `Settings`."""

    database: str
    server_url: str
    app_name: str
    signing_key: str
    signing_key_fallback: str
    sealing_key: str
    sealing_key_fallback: str
    event_key: str
    server_timeout: Duration
    public_url: str
    synchronous: Literal["full", "normal"]
    retry_base: Duration
    retry_factor: float
    retry_cap: Duration
    max_steps: int
    max_result: int
    max_memo: int
    max_stream: int
    max_request_body: int
    max_response_body: int
    max_executions: int
    retention: Duration
    event_retention: Duration
    drain_timeout: Duration
    heartbeat: Duration
    cors_origins: Sequence[str]
    track_all_endpoints: bool
    version: str


@dataclass(frozen=True)
class Settings:
    """Everything that is set once per application. Durations in milliseconds, sizes in bytes."""

    database: str = "sqlite:///.durable/endpoints.db"
    """Where everything is kept: `sqlite:///` and a path relative to the working folder, or
    `sqlite:////` and an absolute one."""
    server_url: str | None = None
    """A server that keeps the runs, `http://127.0.0.1:8288` for instance, instead of a database of
    this process: the companion server, or one that speaks Inngest's protocol."""
    app_name: str = "default"
    """The application's name at a server: its replicas share it, other applications do not. The
    variable is `DURABLE_ENDPOINTS_APP`."""
    signing_key: str | None = None
    """What the tokens of runs are made with, and what opens a server: 16 characters at least. Else
    the key file is used, which the first start makes beside the database; a server on this machine
    may do without (`durable-endpoints dev`)."""
    signing_key_fallback: str | None = None
    """The key before this one: its tokens are good, and no new ones are made with it. A server that
    does not take the new one yet is shown it."""
    sealing_key: str | None = None
    """What stored requests and responses are encrypted with. Else the key file is used; with a
    server that is not on this machine, this key is needed, and the same one in each replica."""
    sealing_key_fallback: str | None = None
    """The key before this one: what it encrypted can be read."""
    event_key: str | None = None
    """What a server wants to see of a script that sends it events; else `signing_key` is shown."""
    server_timeout: int = 10_000
    """How long a request waits for a server that is away, or does not answer. See the option
    `on_unavailable`."""
    public_url: str | None = None
    """How clients reach the application, where a proxy changes that: scheme, host and prefix."""
    synchronous: Literal["full", "normal"] = "full"
    """`normal` saves an `fsync` per commit. It survives a killed process, but a machine that loses
    power may lose the last commits."""
    retry_base: int = 1_000
    """The pause before the second try of a step, give or take a fifth …"""
    retry_factor: float = 2.0
    """… by which it grows from one try to the next …"""
    retry_cap: int = 600_000
    """… up to this."""
    max_steps: int = 10_000
    """Steps of a run."""
    max_result: int = 4 * 1024 * 1024
    """One step's result, as JSON."""
    max_memo: int = 32 * 1024 * 1024
    """All results of a run together."""
    max_stream: int = 64 * 1024 * 1024
    """All that a run streams, withdrawn tries included."""
    max_request_body: int = 4 * 1024 * 1024
    """A larger request to a durable endpoint is refused with 413."""
    max_response_body: int = 64 * 1024 * 1024
    """A larger response still reaches a client that is connected, but is not kept: `/wait` says
    507."""
    max_executions: int = 100
    """Runs that are re-entered at once."""
    retention: int = 7 * 86_400_000
    """How long a run is kept after its end, and with it its token and its Idempotency-Key."""
    event_retention: int = 86_400_000
    """How long an event is kept for waits that begin after it came."""
    drain_timeout: int = 10_000
    """How long a shutdown waits for step bodies that are running."""
    heartbeat: int = 15_000
    """How long an event stream is silent before a comment says that it lives."""
    cors_origins: tuple[str, ...] = ("*",)
    """Origins that may read `/wait`."""
    track_all_endpoints: bool = False
    """Keep a line (method, route, status, duration) about every HTTP request."""
    version: str = ""
    """The application's version, kept with each run."""

    @classmethod
    def load(cls, given: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
        """Check what was `given` by keyword, and fill the rest from the environment.

        Raises `ConfigurationError` that names the keyword or the variable.
        """
        for name in sorted(given.keys() - set(SETTINGS)):
            if name == "function_id":
                raise ConfigurationError(
                    "function_id names one endpoint, not an application: "
                    f"@endpoint(function_id={given[name]!r})"
                )
            known = {*OPTIONS, *SETTINGS, "engine", "hooks"} - {"function_id"}
            raise ConfigurationError(unknown_option(name, known))
        values: dict[str, Any] = {}
        for field in fields(cls):
            if given.get(field.name) is not None:
                values[field.name] = _parse(field.name, field.name, given[field.name])
                continue
            for variable in (variable_of(field.name), *_SECOND_CHOICE.get(field.name, ())):
                if environ.get(variable, "").strip():
                    values[field.name] = _parse(field.name, variable, environ[variable].strip())
                    break
        if "server_url" not in values and "://" in environ.get("INNGEST_DEV", ""):
            values["server_url"] = _parse("server_url", "INNGEST_DEV", environ["INNGEST_DEV"])
        return cls(**values)


SETTINGS = tuple(field.name for field in fields(Settings))
"""The names of the settings."""


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + ("APP" if name == "app_name" else name.upper())


_SECOND_CHOICE: dict[str, tuple[str, ...]] = {
    "server_url": ("INNGEST_BASE_URL", "INNGEST_API_BASE_URL"),
    "signing_key": ("INNGEST_SIGNING_KEY",),
    "signing_key_fallback": ("INNGEST_SIGNING_KEY_FALLBACK",),
    "event_key": ("INNGEST_EVENT_KEY",),
}


def _parse(name: str, source: str, value: Any) -> Any:
    try:
        return _PARSERS[name](value)
    except (TypeError, ValueError) as error:
        shown = "…" if "_key" in name else without_credentials(repr(value))
        raise ConfigurationError(f"{source}={shown}: {error}") from None


def _server_url(value: Any) -> str:
    parts = urlsplit(setting_values.url(value))
    if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "give a server's URL, without user, password and query: what opens the server is the "
            "signing key (DURABLE_ENDPOINTS_SIGNING_KEY)"
        )
    return setting_values.url(value)


def _name(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", setting_values.text(value)):
        raise ValueError("give a name of letters, digits, dots, dashes and underscores")
    return str(value)


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "database": setting_values.text,
    "server_url": _server_url,
    "app_name": _name,
    "signing_key": setting_values.key,
    "signing_key_fallback": setting_values.key,
    "sealing_key": setting_values.key,
    "sealing_key_fallback": setting_values.key,
    "event_key": setting_values.text,
    "server_timeout": setting_values.interval,
    "public_url": setting_values.url,
    "synchronous": setting_values.synchronous,
    "retry_base": parse_duration,
    "retry_factor": setting_values.factor,
    "retry_cap": parse_duration,
    "max_steps": setting_values.whole,
    "max_result": setting_values.whole,
    "max_memo": setting_values.whole,
    "max_stream": setting_values.whole,
    "max_request_body": setting_values.whole,
    "max_response_body": setting_values.whole,
    "max_executions": setting_values.whole,
    "retention": parse_duration,
    "event_retention": parse_duration,
    "drain_timeout": parse_duration,
    "heartbeat": setting_values.interval,
    "cors_origins": setting_values.texts,
    "track_all_endpoints": setting_values.flag,
    "version": setting_values.text,
}
