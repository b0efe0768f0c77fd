"""What one application's middleware knows: its settings, its engine, its routes, who is inside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from starlette.types import ASGIApp, Receive, Scope, Send

from durable_endpoints.client_module import CLIENT
from durable_endpoints.coding import Coding, UndecodableError
from durable_endpoints.door import Door, Outside
from durable_endpoints.engines.base import CallsBack, Engine, Reentry
from durable_endpoints.engines.select import engine_for, foreign_engine_for
from durable_endpoints.engines.stand_in import follow_stand_in, stand_in
from durable_endpoints.errors import EngineError, ForeignServerError
from durable_endpoints.execution import Departure
from durable_endpoints.hooks import Around, Hook
from durable_endpoints.options import EndpointOptions
from durable_endpoints.patience import Queues
from durable_endpoints.proxy import EndpointProxy
from durable_endpoints.reentry import Pass
from durable_endpoints.routes import RouteTable, path_in_app, root_template
from durable_endpoints.settings import Settings
from durable_endpoints.startup_checks import (
    check_encryption,
    check_environment,
    check_layers,
    check_routes,
)

if TYPE_CHECKING:
    from durable_endpoints.endpoint import Endpoint

logger = logging.getLogger("durable_endpoints")

BUILT_IN_PROXY = "/.durable/wait"
"""Where the middleware answers itself, for an application that mounts no proxy."""


_applications: WeakSet[Application] = WeakSet()
"""Those of this process."""


class Application:
    """One application with the middleware, from its first request to its last."""

    def __init__(
        self,
        middleware: ASGIApp,
        settings: Settings,
        defaults: EndpointOptions,
        hooks: Sequence[Hook],
        engine: Engine | None,
        entrance: ASGIApp | None,
    ) -> None:
        self.settings = settings
        self.defaults = defaults
        self.hooks = tuple(hooks)
        self.around = Around.among(self.hooks)
        self.coding = Coding.among(self.hooks)
        self.state: Mapping[str, Any] = {}
        """The application's lifespan state, for requests that are re-entered."""
        self.routes: RouteTable | None = None
        self.outside = Outside(self)
        self.may_be_called = settings.server_url is not None or isinstance(engine, CallsBack)
        """Whether the engine's server may re-enter the application by HTTP requests."""
        self.wait_paths: tuple[str, ...] = ()
        """How the path of a request for `/wait` may end."""
        self.queues = Queues()
        """Clients that wait for their answers."""
        self._options: dict[Endpoint, EndpointOptions] = {}
        _applications.add(self)
        self._middleware = middleware
        self._engine = engine
        self._finds_engine = engine is None
        if self._finds_engine:
            follow_stand_in(self)
        self._is_served = False
        """Whether a lifespan is under way: then the engine stays what it is."""
        self._entrance = entrance
        self._started_on: asyncio.AbstractEventLoop | None = None
        self._root_paths: set[str] = set()
        """Templates of the root paths under which it was reached: several, if it is mounted."""
        self._inside: dict[Door, None] = {}
        """In the order in which they came in."""
        self._draining = False
        self._end_of_grace: asyncio.TimerHandle | None = None

    # The engine

    @property
    def engine(self) -> Engine:
        """The engine, which may not run yet."""
        if self._engine is None:
            self._engine = stand_in()
        if self._engine is None:
            self._engine = engine_for(self.settings)
        return self._engine

    async def _start_engine(self, for_good: bool = False) -> None:
        """Start the engine; if its server turns out to be of another kind, that kind's."""
        try:
            await self.engine.start(for_good)
        except ForeignServerError:
            self._engine = foreign_engine_for(self.settings)
            await self._engine.start(for_good)
            self._add_executors()

    def _add_executors(self) -> None:
        for root_path in self._root_paths:
            self.engine.add_executor(root_path, self._execute, is_whole=False)

    def forget_engine(self) -> None:
        """Another engine may be the right one from the next request on."""
        if self._finds_engine and not self._is_served:
            self._engine = self._started_on = None

    def running_engine(self) -> Engine | None:
        """The engine, if it runs and serves this event loop."""
        engine = self._engine
        if (
            engine is not None
            and engine.is_running
            and self._started_on is asyncio.get_running_loop()
        ):
            return engine
        return None

    async def started_engine(self) -> Engine:
        """The engine, running. Where no lifespan started it, the first request does."""
        if self.running_engine() is None:
            await self._start_engine()
            if self._started_on is None:
                self._add_executors()
            self._started_on = asyncio.get_running_loop()
        return self.engine

    async def start(self) -> None:
        """Start the engine before the application starts: nothing is executed yet."""
        self._draining = False
        await self._start_engine(for_good=True)
        self._is_served = True

    def serve(self, state: Mapping[str, Any]) -> None:
        """The application has started: whatever was left by an earlier process goes on."""
        self.state = state
        self._started_on = asyncio.get_running_loop()
        self._root_paths.add("")
        self.engine.add_executor("", self._execute, is_whole=True)

    # Shutting down

    def begin_drain(self) -> None:
        """Begin nothing new; what runs may go on for a while, and is then handed over."""
        if self._draining or self._started_on is None:
            return
        self._draining = True
        self.engine.begin_drain()
        for door in self._inside:
            if door.execution is not None:
                door.execution.drain()
        grace = self.settings.drain_timeout / 1_000
        self._end_of_grace = asyncio.get_running_loop().call_later(grace, self._hand_over)

    async def stop(self) -> None:
        """Drain, wait for whoever is inside, and stop the engine."""
        if self._started_on is None:
            await self._stop_engine()
            return
        self.begin_drain()
        patience = self.settings.drain_timeout / 1_000 + 1
        for _ in range(round(patience / 0.01)):
            if not self._inside:
                break
            await asyncio.sleep(0.01)
        self._started_on = None
        if self._end_of_grace is not None:
            self._end_of_grace.cancel()
        await self._stop_engine()
        self._draining = False  # a test client may use the application once more

    async def _stop_engine(self) -> None:
        await self.engine.stop()
        self.state, self._is_served = {}, False
        self.forget_engine()

    def _hand_over(self) -> None:
        for door in list(self._inside):
            if door.execution is not None:
                door.execution.depart(Departure.HANDOVER)

    # Requests

    def see(self, scope: Scope) -> RouteTable:
        """Learn, once, where requests come in and which routes there are."""
        if self.routes is None:
            app = scope.get("app")
            if self._entrance is None:
                inside = app is not None and _contains(app, self._middleware)
                self._entrance = app if inside else self._middleware
            self.routes = RouteTable(self.entrance, EndpointProxy)
            self.wait_paths = tuple(
                path + end
                for path in (self.proxy_path, BUILT_IN_PROXY)
                for end in ("", "/", CLIENT)
            )
            if scope["type"] == "http":
                self._root_paths.add(root_template(scope))
            check_layers(self._middleware)
            check_environment()
            check_encryption(self.hooks)
            check_routes(self.routes, self.defaults, BUILT_IN_PROXY, len(_applications) == 1)
        return self.routes

    def root_path(self, scope: Scope) -> str:
        """Where the application stands, for a request that it has not routed yet."""
        template = root_template(scope)
        if template not in self._root_paths:
            self._root_paths.add(template)
            self.engine.add_executor(template, self._execute, is_whole=False)
        return template

    @property
    def entrance(self) -> ASGIApp:
        """Where a request is sent in again."""
        return self._entrance if self._entrance is not None else self._middleware

    @property
    def proxy_path(self) -> str:
        """Where clients wait, below the application's root path."""
        mounted = self.routes.proxy_path if self.routes is not None else None
        return mounted if mounted is not None else BUILT_IN_PROXY

    def serves_wait(self, scope: Scope) -> bool:
        """Whether the request is for `/wait`, the built-in one or the mounted proxy.

        The middleware answers for the proxy: what stands between them has had its say when the
        stored response was made.
        """
        path = path_in_app(scope["path"], scope.get("root_path", ""))
        path = path.removesuffix(CLIENT).rstrip("/")
        return path in (BUILT_IN_PROXY, self.proxy_path)

    def options_of(self, endpoint: Endpoint) -> EndpointOptions:
        """What was given to `@endpoint`, and for the rest the defaults of this application."""
        options = self._options.get(endpoint)
        if options is None:
            options = self._options[endpoint] = self.defaults.change(**endpoint.given)
        return options

    async def answer_call(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer a request that claims to be a re-entry, if the engine's server makes such."""
        engine = await self.started_engine()
        if not isinstance(engine, CallsBack):
            return False
        await engine.answer_call(scope, receive, send, self._execute)
        return True

    def function_id(self, endpoint: Endpoint, door: Door) -> str:
        """The default id of the endpoint that a request reached."""
        routes = self.see(door.snapshot)
        root_path = door.snapshot.get("root_path", "")
        return routes.function_id(endpoint.wrapper, door.scope, root_path)

    def entered(self, door: Door) -> None:
        """A run is being executed."""
        self._inside[door] = None
        if self._draining and door.execution is not None:
            door.execution.drain()

    def left(self, door: Door) -> None:
        """It is not any more."""
        self._inside.pop(door, None)

    async def track(
        self, scope: Scope, root_path: str, status: int, run_id: str | None, elapsed: int
    ) -> None:
        """Keep a line about a request that is over; `elapsed` in microseconds. `root_path` is the
        application's own, from before routing."""
        template = self.see(scope).template(scope, root_path)
        try:
            engine = await self.started_engine()
            engine.track(scope["method"], template, status, elapsed, run_id)
        except EngineError:
            logger.warning("a request could not be tracked", exc_info=True)

    async def _execute(self, reentry: Reentry) -> None:
        try:
            session = self.coding.wrap(reentry.session)
        except UndecodableError as error:
            logger.error("run %s is parked: %s", reentry.session.id, error)
            await reentry.session.park("undecodable")
            return
        await Pass(self, reentry._replace(session=session)).run()


def _contains(app: Any, middleware: Any) -> bool:
    """Whether `middleware` is one of the application's own middlewares."""
    layer = getattr(app, "middleware_stack", None)
    for _ in range(100):
        if layer is None:
            return False
        if layer is middleware:
            return True
        layer = getattr(layer, "app", None)
    return False
