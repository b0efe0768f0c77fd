"""Applications that may be called back: an origin is trusted because the operator, or whoever has a
signing key, has named it, and never because a request claims it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from durable_endpoints_server.engine.facts import Change, OriginTrusted
from durable_endpoints_server.host import Host
from durable_endpoints_server.inngest.trigger import origin_of
from durable_endpoints_server.settings import is_loopback


class Apps:
    """The origins of applications: those of the settings, and those that are kept."""

    def __init__(self, host: Host, origins: Iterable[str], *, dev: bool) -> None:
        """In development (`dev`), whatever runs on this machine is trusted."""
        self._host = host
        self._dev = dev
        self._origins = {origin_of(origin) for origin in origins}
        self.changed: Callable[[], None] = lambda: None
        """Called when an origin was registered: runs may have waited for it."""

    async def load(self) -> None:
        """Trust what was registered at an earlier server, too."""
        self._origins.update(await self._host.store.origins())

    def allows(self, origin: str) -> bool:
        """Whether the application at this origin may be called back."""
        if origin in self._origins:
            return True
        return self._dev and is_loopback(urlsplit(origin).hostname or "")

    @property
    def origins(self) -> list[str]:
        """The origins that were named."""
        return sorted(self._origins)

    async def register(self, domain: object) -> str:
        """Trust an origin from now on; returns its usual form, once it is on disk.

        Raises `MalformedError` and `StorageError`.
        """
        origin = origin_of(domain)
        trusted = OriginTrusted(origin, self._host.clock.now())
        await self._host.store.submit(Change((trusted,))).wait()
        self._origins.add(origin)
        self.changed()
        return origin


def is_called_back(app: str) -> bool:
    """Whether a run of `app` (see `NewRun`) is one of another SDK: its application is an origin."""
    return "://" in app
