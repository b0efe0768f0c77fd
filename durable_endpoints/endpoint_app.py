"""`endpoint_app`: one durable handler as an ASGI application of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Unpack

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from durable_endpoints.calls import unwrap
from durable_endpoints.endpoint import endpoint
from durable_endpoints.engines.base import Engine
from durable_endpoints.hooks import Hook
from durable_endpoints.middleware import DurableEndpointsMiddleware
from durable_endpoints.options import Defaults
from durable_endpoints.proxy import endpoint_proxy
from durable_endpoints.routes import MARK
from durable_endpoints.settings import SettingsArguments

Handler = Callable[[Request], Response | Awaitable[Response]]

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class Arguments(SettingsArguments, Defaults, total=False):
    """What `DurableEndpointsMiddleware` takes."""

    engine: Engine | None
    hooks: Sequence[Hook]


def endpoint_app(
    handler: Handler,
    *,
    path: str = "/{path:path}",
    methods: list[str] | None = None,
    wait_path: str = "/wait",
    **options: Unpack[Arguments],
) -> Starlette:
    """Serve one handler, `(request) -> Response`, durably: middleware, route and proxy included.

    It answers at `path` (everywhere, by default) for `methods` (all of them), and its clients wait
    at `wait_path`. `options` are those of `DurableEndpointsMiddleware`. A handler that is not
    decorated yet is decorated with the defaults.
    """
    durable = handler if hasattr(unwrap(handler), MARK) else endpoint(handler)
    return Starlette(
        routes=[
            Mount(wait_path, endpoint_proxy()),
            Route(path, durable, methods=methods or _METHODS),
        ],
        middleware=[Middleware(DurableEndpointsMiddleware, **options)],
    )
