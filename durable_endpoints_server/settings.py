"""Settings of a companion server: the command line, else the environment, else a file, else
defaults."""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, NamedTuple

from durable_endpoints.protocol import setting_values as values
from durable_endpoints.protocol.durations import parse_duration
from durable_endpoints.protocol.errors import ConfigurationError
from durable_endpoints.protocol.urls import without_credentials

logger = logging.getLogger("durable_endpoints")

PREFIX = "DURABLE_ENDPOINTS_"

_HEARTBEATS = 6
"""How often a process says that it lives, in the time after which it counts as dead."""


@dataclass(frozen=True)
class ServerSettings:
    """Everything that is set once per server. Durations in milliseconds, sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = 8288
    """0 takes any that is free."""
    database: str = "sqlite:///.durable/server.db"
    synchronous: Literal["full", "normal"] = "full"
    dev: bool = False
    """For development: no keys, and callers from this machine only."""
    signing_keys: tuple[str, ...] = field(default=(), repr=False)
    """The first one signs, all are accepted."""
    event_keys: tuple[str, ...] = field(default=(), repr=False)
    """Who may send events at `/e/{key}`."""
    app_origins: tuple[str, ...] = ()
    """Origins of applications that may be called back over HTTP: `https://api.example.com`."""
    retry_interval: int | None = None
    """Between the tries of other SDKs' steps; None for Inngest's table."""
    retry_base: int = 1_000
    """The pause before the second try of a step of our SDK, give or take a fifth …"""
    retry_factor: float = 2.0
    """… by which it grows from one try to the next …"""
    retry_cap: int = 600_000
    """… up to this."""
    lease: int = 30_000
    """How long a process may be silent until its runs go on in another one."""
    heartbeat: int = 5_000
    """How often it says that it lives: `load` makes that a part of `lease`."""
    abandon_after: int = 2 * 3_600_000
    """How long a request of another SDK may be silent until its run is given up."""
    retention: int = 7 * 86_400_000
    event_retention: int = 86_400_000
    max_steps: int = 10_000
    max_result: int = 4 * 1024 * 1024
    max_memo: int = 32 * 1024 * 1024
    max_stream: int = 64 * 1024 * 1024
    max_executions: int = 100
    max_connections: int = 10_000
    drain_timeout: int = 10_000
    log_format: Literal["text", "json"] = "text"
    log_level: str = "info"
    access_log: bool = False

    @classmethod
    def load(
        cls,
        dev: bool,
        given: Mapping[str, Any],
        environ: Mapping[str, str] = os.environ,
        file: Path | None = None,
    ) -> ServerSettings:
        """Check what was `given` by flags (None: not given), and fill the rest.

        Raises `ConfigurationError` that names the flag, the variable, or the file and its key, and
        says what to write; and if there are no keys, or, in development, a host that others reach.
        """
        written = _read(file) if file is not None else {}
        found: dict[str, Any] = {}
        if dev:
            found["retry_interval"] = 1_000
        for setting in SETTINGS:
            if dev and setting.is_key:
                continue
            source = _first(setting, given, environ, file, written)
            if source is not None:
                found[setting.name] = _parse(setting, *source)
        if "lease" in found:
            found["heartbeat"] = max(1, found["lease"] // _HEARTBEATS)
        settings = cls(dev=dev, **found)
        _check_environment(environ)
        if dev:
            _check_loopback(settings.host)
        elif not settings.signing_keys:
            raise ConfigurationError(_NO_KEYS)
        return settings


class Setting(NamedTuple):
    """One setting: where it comes from, and what it may be."""

    name: str
    """In `ServerSettings`, and in the file."""
    parse: Callable[[Any], Any]
    help: str
    singular: str = ""
    """The flag's name, of a setting with several values."""
    second_choice: tuple[str, ...] = ()
    """Variables that are read if those of this package are not set."""

    @property
    def flag(self) -> str:
        return "--" + (self.singular or self.name).replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + (self.singular or self.name).upper()

    @property
    def is_key(self) -> bool:
        return self.singular.endswith("_key")


def _keys(value: Any) -> tuple[str, ...]:
    return tuple(values.key(item) for item in values.texts(value) if item)


def _origins(value: Any) -> tuple[str, ...]:
    return tuple(values.origin(item) for item in values.texts(value) if item)


def _port(value: Any) -> int:
    written = str(value)
    if isinstance(value, bool) or not written.isdecimal() or int(written) > 65_535:
        raise ValueError("give a number from 0 to 65535; 0 takes any port that is free")
    return int(written)


def _retry_interval(value: Any) -> int:
    """A bare number is seconds, as Inngest's server has it."""
    return values.interval(float(value) if str(value).isdecimal() else value)


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"give {' or '.join(allowed)}")
        return str(value)

    return parse


SETTINGS = (
    Setting(
        "host", values.text, "The address to listen at. serve: 0.0.0.0 for all of this machine's."
    ),
    Setting("port", _port, "The port; 0 takes any that is free."),
    Setting("database", values.text, "Where everything is kept: sqlite:///path."),
    Setting(
        "signing_keys",
        _keys,
        "What applications show, and what callbacks are signed with. Repeatable: the first one "
        "signs, all are accepted. Better in the environment, where other users do not see it.",
        "signing_key",
        ("INNGEST_SIGNING_KEY", "INNGEST_SIGNING_KEY_FALLBACK"),
    ),
    Setting(
        "event_keys",
        _keys,
        "What opens /e/KEY for events from outside. Repeatable.",
        "event_key",
        ("INNGEST_EVENT_KEY",),
    ),
    Setting(
        "app_origins",
        _origins,
        "An origin that may be called back, for applications with Inngest's SDK. Repeatable.",
        "app_origin",
    ),
    Setting(
        "retry_interval",
        _retry_interval,
        "A constant pause between the tries of other SDKs' steps, instead of Inngest's table.",
    ),
    Setting("retry_base", parse_duration, "The pause before the second try of a step …"),
    Setting("retry_factor", values.factor, "… by which it grows with each try …"),
    Setting("retry_cap", parse_duration, "… up to this."),
    Setting("lease", values.interval, "A process that is silent for so long loses its runs."),
    Setting(
        "abandon_after",
        values.interval,
        "A request of another SDK that is silent for so long is given up.",
    ),
    Setting("retention", parse_duration, "How long a run is kept after its end."),
    Setting("event_retention", parse_duration, "How long an event is kept for later waits."),
    Setting("max_steps", values.whole, "Steps of a run."),
    Setting("max_result", values.whole, "Bytes of one step's result."),
    Setting("max_memo", values.whole, "Bytes of all results of a run."),
    Setting("max_stream", values.whole, "Bytes that a run may stream."),
    Setting("max_executions", values.whole, "Runs that are executed again at once."),
    Setting("max_connections", values.whole, "Connections at once; more get a 503."),
    Setting("drain_timeout", parse_duration, "How long a stop waits for requests that run."),
    Setting("synchronous", values.synchronous, "full, or normal: commits without an fsync each."),
    Setting("log_format", _one_of("text", "json"), "text, or json: one object a line."),
    Setting(
        "log_level", _one_of("debug", "info", "warning", "error"), "debug, info, warning or error."
    ),
    Setting("access_log", values.flag, "Log every request, not only those that fail."),
)

_NEARLY = 0.88
"""How alike two names are that may be meant to be one: more than `SEALING_KEY_FALLBACK`, which is
an application's, and `SIGNING_KEY_FALLBACK`."""

_NO_KEYS = f"""serve needs a signing key, and has none. Make keys, and keep them:

  export {PREFIX}SIGNING_KEY=$(openssl rand -hex 32)   # applications need the same one
  export {PREFIX}EVENT_KEY=$(openssl rand -hex 32)     # for who sends events to /e/KEY

To develop on this machine, `durable-endpoints dev` needs none."""


def _first(
    setting: Setting,
    given: Mapping[str, Any],
    environ: Mapping[str, str],
    file: Path | None,
    written: Mapping[str, Any],
) -> tuple[str, Any] | None:
    """What a setting is given first: the name of that source, and the value."""
    value = given.get(setting.name)
    if value is not None and value != ():
        return setting.flag, value
    own = [setting.variable, *([f"{setting.variable}_FALLBACK"] if setting.is_key else ())]
    for names in (own, setting.second_choice):
        set_ = {name: environ[name].strip() for name in names if environ.get(name, "").strip()}
        if set_:
            return ", ".join(set_), ",".join(set_.values())
    if setting.name in written:
        return f"{file}: {setting.name}", written[setting.name]
    return None


def _parse(setting: Setting, source: str, value: Any) -> Any:
    try:
        return setting.parse(value)
    except (TypeError, ValueError) as error:
        shown = "…" if setting.is_key else without_credentials(repr(value))
        raise ConfigurationError(f"{source}={shown}: {error}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        written = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{file} is not TOML: {error}") from None
    known = [setting.name for setting in SETTINGS]
    for name in written:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise ConfigurationError(f"{file}: unknown setting {name}: {hint}")
    if any(setting.is_key and setting.name in written for setting in SETTINGS):
        _check_mode(file)
    return written


def _check_environment(environ: Mapping[str, str]) -> None:
    """Name variables that are nearly settings. Others may be an application's."""
    own = [setting.variable for setting in SETTINGS]
    own += [f"{setting.variable}_FALLBACK" for setting in SETTINGS if setting.is_key]
    known = [name.removeprefix(PREFIX) for name in own]
    for name in sorted(environ):
        written = name.removeprefix(PREFIX)
        if written == name or written in known:
            continue
        if close := get_close_matches(written, known, 1, cutoff=_NEARLY):
            logger.warning(
                "the variable %s is no setting: did you mean %s?", name, PREFIX + close[0]
            )


def _check_mode(file: Path) -> None:
    if os.name == "posix" and file.stat().st_mode & 0o077:
        logger.warning("%s holds keys, and others may read it: chmod 600 %s", file, file)


def _check_loopback(host: str) -> None:
    if not is_loopback(host):
        raise ConfigurationError(
            f"--host {host}: dev has no keys, so it is for this machine only: leave out --host, or "
            "let `durable-endpoints serve` answer others, with keys"
        )


def is_loopback(host: str) -> bool:
    """Whether a host name, or an address, means this machine and nobody else."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
