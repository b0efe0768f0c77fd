"""What can be seen to be wrong before it hurts: told once, when an application starts.

Without a lifespan that is the first request. Nothing here stops an application; what must stop one
is a `ConfigurationError`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from urllib.parse import urlsplit

from durable_endpoints.hooks import Hook, overrides
from durable_endpoints.options import EndpointOptions
from durable_endpoints.protocol.places import definition
from durable_endpoints.proxy import EndpointProxy, endpoint_proxy
from durable_endpoints.routes import RouteTable
from durable_endpoints.settings import PREFIX, Settings, variable_of

logger = logging.getLogger("durable_endpoints")

_LIKE_OURS = re.compile(r"DURABLE_?ENDPOINTS?_", re.IGNORECASE)
_OF_ENCRYPTION = (f"{PREFIX}ENCRYPTION_KEY", f"{PREFIX}ENCRYPTION_KEY_FALLBACK")

OF_SERVERS = tuple(
    PREFIX + name
    for name in (
        *("HOST", "PORT", "APP_ORIGIN", "RETRY_INTERVAL", "LEASE", "ABANDON_AFTER", "CONFIG"),
        *("MAX_CONNECTIONS", "LOG_FORMAT", "LOG_LEVEL", "ACCESS_LOG"),
    )
)
"""Variables of the companion server that an application has no use for, but may see: both may be
started with the same environment."""


def check_routes(
    routes: RouteTable, defaults: EndpointOptions, built_in_proxy: str, is_alone: bool
) -> None:
    """Look at what an application's routes say. `is_alone`: no other application of this process
    could have the routes that are missed here."""
    for handler in routes.swapped():
        logger.warning(
            "%s is decorated with @endpoint, but its route has the undecorated function, so "
            "nothing of it is durable: put @endpoint directly above the `def`, below the route's "
            "decorator",
            _name(handler),
        )
    for handler in routes.unrouted():
        logger.log(
            logging.WARNING if is_alone else logging.INFO,
            "%s is decorated with @endpoint, but is on no route of this application: add its "
            "route, or include its router",
            _name(handler),
        )
    _check_proxy(routes, built_in_proxy)
    given = [endpoint.given.get("async_redirect_url") for endpoint in routes.endpoints()]
    for url in {url for url in (defaults.async_redirect_url, *given) if isinstance(url, str)}:
        _check_redirect(routes, url, built_in_proxy)


def check_layers(middleware: object) -> None:
    """Tell somebody who added the middleware twice. The outer one of the two sees the other."""
    layer = getattr(middleware, "app", None)
    for _ in range(100):
        if layer is None:
            return
        if type(layer) is type(middleware):
            logger.warning(
                "DurableEndpointsMiddleware is added twice, and the inner one does nothing: add it "
                "once to the application, and not to its routers or mounted parts as well"
            )
            return
        layer = getattr(layer, "app", None)


def check_environment(environ: Mapping[str, str] = os.environ) -> None:
    """Name variables that look like settings, and are none."""
    known = [variable_of(field.name) for field in fields(Settings)]
    options = [PREFIX + field.name.upper() for field in fields(EndpointOptions)]
    for name in sorted(environ):
        if not _LIKE_OURS.match(name) or name in (*known, *_OF_ENCRYPTION, *OF_SERVERS):
            continue
        if name in options:
            option = name.removeprefix(PREFIX).lower()
            logger.warning(
                "the variable %s is no setting: %s is an option of endpoints, "
                "add_middleware(DurableEndpointsMiddleware, %s=…)",
                *(name, option, option),
            )
            continue
        # Others may be of somebody else: Kubernetes makes such names for a service.
        if close := get_close_matches(name.upper(), known, 1, cutoff=0.85):
            logger.warning("the variable %s is no setting: did you mean %s?", name, close[0])


def check_encryption(hooks: Iterable[Hook], environ: Mapping[str, str] = os.environ) -> None:
    """Tell somebody who gave a key for step data, and nothing that uses it."""
    if environ.get(_OF_ENCRYPTION[0]) and not any(overrides(hook, "encode") for hook in hooks):
        logger.warning(
            "%s is set, but no hook encrypts, so results of steps are stored as they are: "
            "add_middleware(DurableEndpointsMiddleware, hooks=[StepEncryption()])",
            _OF_ENCRYPTION[0],
        )


def _check_proxy(routes: RouteTable, built_in_proxy: str) -> None:
    for path in routes.templates(lambda app: app is endpoint_proxy):
        logger.warning(
            "endpoint_proxy is mounted at %s without having been called: write "
            'app.mount("%s", endpoint_proxy())',
            *(path, path),
        )
    if routes.proxy_path is not None:
        return
    for path in routes.templates(lambda app: isinstance(app, EndpointProxy)):
        logger.warning(
            "endpoint_proxy() is mounted at %s, a path with parameters, which nobody can fill in: "
            "clients wait at %s instead. Mount it at a fixed path",
            *(path, built_in_proxy),
        )
    if routes.endpoints():
        logger.info(
            "no endpoint_proxy() is mounted: clients wait at %s. "
            'app.mount("/wait", endpoint_proxy()) chooses another path',
            built_in_proxy,
        )


def _check_redirect(routes: RouteTable, url: str, built_in_proxy: str) -> None:
    path = urlsplit(url).path.rstrip("/")
    is_ours = url.startswith("/") and path != built_in_proxy
    if is_ours and routes.first_for("GET", path) is None:
        logger.warning(
            "async_redirect_url=%r leads to no route of this application, so clients that wait get "
            'a 404: app.mount("%s", endpoint_proxy())',
            url,
            path,
        )


def _name(handler: object) -> str:
    name: str = getattr(handler, "__qualname__", repr(handler))
    place = definition(handler).partition(",")[0] if callable(handler) else ""
    return f"{name} ({place})" if place else name
