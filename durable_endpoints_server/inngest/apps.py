"""Applications that may be called back: an origin is trusted because the operator, or whoever has a
signing key, has named it, and never because a request claims it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from durable_endpoints_server.inngest.trigger import origin_of

MAX_REGISTERED: Final = 10_000


class Apps:
    """The origins of applications."""

    def __init__(self, origins: Iterable[str], *, dev: bool) -> None:
        """In development (`dev`), whatever runs on this machine is trusted."""
        self._dev = dev
        self._origins = {origin_of(origin) for origin in origins}
        self.changed: Callable[[], None] = lambda: None
        """Called when an origin was registered: runs may have waited for it."""

    def allows(self, origin: str) -> bool:
        """Whether the application at this origin may be called back."""
        return origin in self._origins or (self._dev and is_loopback(origin))

    @property
    def origins(self) -> list[str]:
        """The origins that were named."""
        return sorted(self._origins)

    def register(self, domain: object) -> str:
        """Trust an origin from now on; returns its usual form. Raises `MalformedError`."""
        origin = origin_of(domain)
        if origin not in self._origins:
            self._origins.add(origin)
            self.changed()
        return origin


def is_called_back(app: str) -> bool:
    """Whether a run of `app` (see `NewRun`) is one of another SDK: its application is an origin."""
    return "://" in app


def is_loopback(origin: str) -> bool:
    """Whether an origin is on this machine."""
    host = urlsplit(origin).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
