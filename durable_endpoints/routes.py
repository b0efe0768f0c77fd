"""The application's routes, walked once: which requests may become runs, and under which id.

A function id is `"{METHOD} {route template}"` with the whole template, mounts and included routers
too, so that one endpoint on two routes has two ids and a tenant's name in the path is not part of
any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

from starlette.convertors import Convertor
from starlette.routing import BaseRoute, Host, Mount, compile_path
from starlette.types import ASGIApp, Scope

from durable_endpoints.calls import unwrap

MARK = "__durable_endpoint__"
"""The attribute by which a decorated handler is known. Its value is the undecorated one."""

_METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "query")


_NEVER = re.compile(r"(?!)")


class Found(NamedTuple):
    """One route, with the mounts and routers above it."""

    template: str
    pattern: re.Pattern[str]
    endpoint: Any
    convertors: Mapping[str, Convertor[Any]] = {}
    """What makes text of the parameters in its path."""
    methods: frozenset[str] | None = None
    """None for an endpoint that looks at the method itself: a class, for instance."""

    def methods_of(self, wrapper: Any) -> frozenset[str]:
        """The methods by which this route reaches a decorated function."""
        if not isinstance(self.endpoint, type):
            return self.methods or frozenset()
        handlers = ((name, getattr(self.endpoint, name, None)) for name in _METHODS)
        return frozenset(
            name.upper()
            for name, handler in handlers
            if handler and bare_function(handler) is wrapper
        )


class RouteTable:
    """What one application's routes say about durable endpoints."""

    def __init__(self, app: ASGIApp, proxy_type: type) -> None:
        self._routes = _routes_of(app)
        self._proxy_type = proxy_type
        self._size = -1
        self._pattern = _NEVER
        self._durable: list[Found] = []
        self._by_wrapper: dict[int, list[Found]] = {}
        self._all: list[Found] = []
        self.proxy_path: str | None = None
        """Where `endpoint_proxy()` is mounted, below the application's root path."""
        self._walk_again()

    def _walk_again(self) -> None:
        self._size = len(self._routes)
        self._durable = []
        self._by_wrapper = {}
        self.proxy_path = None
        self._all = list(_walk(self._routes, "", "", {}))
        for found in self._all:
            if isinstance(_innermost(found.endpoint), self._proxy_type):
                if self.proxy_path is None and "{" not in found.template:
                    self.proxy_path = found.template.rstrip("/")
            elif wrappers := _wrappers_in(found.endpoint):
                self._durable.append(found)
                for wrapper in wrappers:
                    self._by_wrapper.setdefault(id(wrapper), []).append(found)
        if self._durable:
            self._pattern = re.compile("|".join(found.pattern.pattern for found in self._durable))
        else:
            self._pattern = _NEVER

    def may_be_durable(self, scope: Scope) -> bool:
        """Whether the request's path belongs to a decorated handler."""
        if len(self._routes) != self._size:
            self._walk_again()  # routes were added after the start
        path, root_path = scope["path"], scope.get("root_path")
        if root_path:
            path = path_in_app(path, root_path)
        return self._pattern.match(path) is not None

    def function_id(self, wrapper: Any, scope: Scope, root_path: str) -> str:
        """The id of the decorated handler `wrapper`, reached by the routed request `scope`.

        `root_path` is the application's own, from before routing.
        """
        method: str = scope["method"]
        candidates = self._by_wrapper.get(id(wrapper), [])
        if len(candidates) > 1:
            path = path_in_app(scope["path"], root_path)
            candidates = [found for found in candidates if found.pattern.match(path)]
        if candidates:
            return f"{method} {candidates[0].template}"
        # A route that the walk cannot see, inside an opaque ASGI application for instance.
        template = getattr(scope.get("route"), "path_format", None)
        if template is None:
            return f"{method} {scope['path']}"
        return f"{method} {scope.get('root_path', '')[len(root_path) :]}{template}"

    def routes_to(self, wrapper: Any) -> Sequence[Found]:
        """The routes that reach a decorated function."""
        if len(self._routes) != self._size:
            self._walk_again()
        return self._by_wrapper.get(id(wrapper), ())

    def first_for(self, method: str, path: str) -> Found | None:
        """The route that a request gets."""
        for found in self._all:
            if found.pattern.match(path) and (found.methods is None or method in found.methods):
                return found
        return None

    def template(self, scope: Scope, root_path: str) -> str:
        """The whole route template of a request, for lists: the path itself if no route has it."""
        path = path_in_app(scope["path"], root_path)
        for found in self._all:
            if found.pattern.match(path):
                return found.template
        return path

    # For whoever looks for mistakes

    def templates(self, is_meant: Callable[[Any], bool]) -> list[str]:
        """The path templates of what is on a route and `is_meant`, middlewares aside."""
        return [found.template for found in self._all if is_meant(_innermost(found.endpoint))]

    def endpoints(self) -> list[Any]:
        """What the decorator has noted of each decorated handler on a route."""
        return [
            getattr(wrapper, MARK) for f in self._durable for wrapper in _wrappers_in(f.endpoint)
        ]

    def swapped(self) -> list[Any]:
        """Handlers that were decorated, but whose undecorated self is on the route."""
        return [function for function in self._functions() if function in _decorated]

    def unrouted(self) -> list[Any]:
        """Decorated functions on no route, from modules that have others on one."""
        functions = self._functions()
        modules = {function.__module__ for function in functions}
        routed = {unwrap(found.function) for found in self.endpoints()}.union(functions)
        return [
            function
            for function in _decorated
            if function.__module__ in modules
            and "<" not in function.__qualname__  # made by a function: there may be many of it
            and function not in routed
        ]

    def _functions(self) -> list[Any]:
        return [unwrap(handler) for found in self._all for handler in _handlers(found.endpoint)]


_decorated: WeakSet[Any] = WeakSet()


def note_decorated(function: Any) -> None:
    """Note that `function` was decorated, for the checks at the start."""
    _decorated.add(unwrap(function))


def _routes_of(app: Any) -> list[BaseRoute]:
    """The routes of an application, looking through middlewares around it (`.app`)."""
    for _ in range(50):
        routes = getattr(app, "routes", None)
        if isinstance(routes, list):
            return routes
        app = getattr(app, "app", None)
        if app is None:
            break
    return []


def _walk(
    routes: Iterable[Any], template: str, pattern: str, convertors: Mapping[str, Convertor[Any]]
) -> Iterator[Found]:
    """Every route below, with its whole path template and the pattern of its whole path."""
    for route, plain in _flatten(routes):
        path = getattr(route, "path", None)
        if isinstance(plain, Host):
            yield from _walk(_routes_of(plain.app), template, pattern, convertors)
        elif isinstance(plain, Mount) and path is not None:
            path = path.rstrip("/")
            inner, below = _routes_of(plain.app), (template + path, pattern + _regex(path))
            yield from _walk(inner, *below, {**convertors, **compile_path(path)[2]})
            if not inner:
                yield Found(below[0], re.compile(below[1] + "(?:/.*)?$"), plain.app)
        elif path is not None and getattr(route, "endpoint", None) is not None:
            _, format, own = compile_path(path)
            whole, methods = re.compile(pattern + _regex(path) + "$"), route.methods
            yield Found(
                template + format,
                whole,
                route.endpoint,
                {**convertors, **own},
                None if methods is None else frozenset(methods),
            )


def _flatten(routes: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Each route as it stands in its place, and as it was made.

    FastAPI includes routers lazily, and has a function that lays them out.
    """
    try:
        from fastapi.routing import iter_route_contexts
    except ImportError:
        for route in routes:
            yield route, route
    else:
        for context in iter_route_contexts(list(routes)):
            yield context, context.original_route


def _regex(path: str) -> str:
    """The pattern of a path template, without anchors and group names, so that it composes."""
    pattern = compile_path(path)[0].pattern.removeprefix("^").removesuffix("$")
    return re.sub(r"\(\?P<\w+>", "(?:", pattern)


def root_template(scope: Scope) -> str:
    """The root path of an application, with the names of its mounts' parameters in the place of
    their values; `scope` is from before the application's own routing."""
    root_path: str = scope.get("root_path", "")
    params = scope.get("path_params")
    if not root_path or not params:
        return root_path
    segments = root_path.split("/")
    for name, value in reversed(params.items()):
        for index in range(len(segments) - 1, -1, -1):
            if segments[index] == str(value):
                segments[index] = f"{{{name}}}"
                break
    return "/".join(segments)


def path_in_app(path: str, root_path: str) -> str:
    """The part of a request's path that the application routes by."""
    if root_path and path.startswith(root_path):
        rest = path[len(root_path) :]
        if not rest or rest.startswith("/"):
            return rest
    return path


def _innermost(app: Any) -> Any:
    """The application inside any middlewares of a route."""
    for _ in range(50):
        inner = getattr(app, "app", None)
        if inner is None:
            return app
        app = inner
    return app


def _handlers(endpoint: Any) -> list[Any]:
    """The functions of a route's endpoint: itself, or the methods of a class."""
    if isinstance(endpoint, type):
        return [getattr(endpoint, name) for name in _METHODS if hasattr(endpoint, name)]
    return [endpoint] if hasattr(unwrap(endpoint), "__code__") else []


def _wrappers_in(endpoint: Any) -> list[Any]:
    """The decorated functions among a route's handlers."""
    functions = [bare_function(handler) for handler in _handlers(endpoint)]
    return [function for function in functions if hasattr(function, MARK)]


def bare_function(handler: Any) -> Any:
    """The function inside partials and bound methods."""
    function = unwrap(handler)
    return getattr(function, "__func__", function)
