"""The engine at a server: what an application asks of it, over one connection per event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from durable_endpoints.engines.base import (
    Executor,
    KeyHolder,
    Outcome,
    Reentry,
    Script,
    Session,
    StreamReader,
)
from durable_endpoints.engines.remote.claimed import Claimed
from durable_endpoints.engines.remote.dialing import Dial, Keys, WebSocketDial
from durable_endpoints.engines.remote.heartbeat import Heartbeat
from durable_endpoints.engines.remote.keys import keyring
from durable_endpoints.engines.remote.questions import ReleasedError
from durable_endpoints.engines.remote.session import RemoteSession
from durable_endpoints.engines.remote.station import Station, steady_now
from durable_endpoints.errors import (
    EngineClosedError,
    EngineError,
    ForeignServerError,
    StorageError,
)
from durable_endpoints.protocol import failures, wire
from durable_endpoints.protocol.messages import StoredRequest, StoredResponse
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints.protocol.runs import Fail, NewRun
from durable_endpoints.protocol.streams import StreamStart
from durable_endpoints.protocol.tokens import Grant
from durable_endpoints.sealing import Keyring, UnsealError
from durable_endpoints.settings import Settings
from durable_endpoints.unkept import UnkeptSession
from durable_endpoints_server.engine.model import Policy

logger = logging.getLogger("durable_endpoints")

T = TypeVar("T")

_FIRST_TRY = 5.0
"""Seconds for which the start waits to see whether the server is there."""
_ADMISSION = 5.0
"""Seconds that a new request is held back at the most while a run is executed alone."""
_AS_LONG_AS_IT_TAKES = 86_400.0
_PAUSE = 0.1
_SETTLED = ("completed", "failed", "cancelled", "parked")


class RemoteEngine:
    """An `Engine` at the server of `settings.server_url`. Applications of this process that name
    the same one, under the same name, share it."""

    def __init__(self, settings: Settings, dial: Dial | None = None) -> None:
        """`dial` opens connections in place of the network, in tests."""
        self.policy = _policy(settings, {})
        self._settings = settings
        self._keys = Keys(settings)
        self._is_networked = dial is None
        self._dial = dial or WebSocketDial(settings.server_url or "", self._keys)
        self._keyring: Keyring | None = None
        self._stations: dict[asyncio.AbstractEventLoop, Station] = {}
        self._executors: dict[str, Executor] = {}
        self._default: Executor | None = None
        self._users = 0
        """How many applications run it for good."""
        self._offset = time.time_ns() // 1_000_000 - steady_now()
        """What engine time is ahead of `steady_now`: until the server tells its own, this
        machine's clock is taken for it."""
        self._heartbeat: Heartbeat | None = None
        self._lease = 0.0
        """Seconds, as the server has told."""

    @property
    def script(self) -> Script | None:
        return None

    # Lifecycle

    async def start(self, for_good: bool = False) -> None:
        """Begin to serve on this event loop. A server that is away is no error: its time will come.

        Raises `ForeignServerError` for a server that does not know this wire, and
        `ConfigurationError` if a key is missing.
        """
        loop = asyncio.get_running_loop()
        if self._keyring is None or not self._stations:
            self._keyring = await loop.run_in_executor(None, keyring, self._settings)
        for other in [other for other in self._stations if other.is_closed()]:
            del self._stations[other]
        station = self._stations.get(loop)
        if station is None:
            station = self._stations[loop] = Station(self, self._dial)
        try:
            await station.link.tried(min(_FIRST_TRY, self.server_timeout))
        except ForeignServerError:
            self._stations.pop(loop, None)
            raise
        if for_good:
            self._users += 1

    def begin_drain(self) -> None:
        for loop, station in list(self._stations.items()):
            _on(loop, station.begin_drain)

    async def stop(self) -> None:
        self._users = max(0, self._users - 1)
        if self._users:
            return
        self._executors, self._default = {}, None
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        here = asyncio.get_running_loop()
        stations, self._stations = self._stations, {}
        for loop, station in stations.items():
            if loop is here:
                await station.close()
            elif not loop.is_closed():
                asyncio.run_coroutine_threadsafe(station.close(), loop)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return self._station.spawn(coroutine, name)

    @property
    def is_running(self) -> bool:
        station = self._stations.get(_running_loop())
        if station is not None:
            return not station.link.is_foreign
        return any(not loop.is_closed() for loop in self._stations)

    @property
    def _station(self) -> Station:
        """That of the running event loop."""
        station = self._stations.get(asyncio.get_running_loop())
        if station is None:
            raise EngineClosedError("the engine is not running")
        return station

    # What a station asks

    @property
    def app_name(self) -> str:
        return self._settings.app_name

    @property
    def server_url(self) -> str:
        return self._settings.server_url or ""

    @property
    def server_timeout(self) -> float:
        return self._settings.server_timeout / 1_000

    @property
    def executors(self) -> dict[str, Any]:
        return {
            "root_paths": list(self._executors),
            "default": self._default is not None,
            "capacity": self._settings.max_executions,
        }

    def welcomed(self, welcome: dict[str, Any]) -> None:
        self._offset = wire.whole(welcome["now"]) - steady_now()
        self.policy = _policy(self._settings, welcome["policy"])
        self._lease = wire.whole(welcome["lease"]) / 1_000
        if self._is_networked and self._heartbeat is None:
            url, interval = self._settings.server_url or "", wire.whole(welcome["heartbeat"])
            self._heartbeat = Heartbeat(url, self._keys, self._names, interval / 1_000)

    def _names(self) -> list[str]:
        """The names under which this process is known to the server, those of its living loops.

        A blocked loop does not notice that its link is lost, and lives. One that could not open
        another link for a whole lease, although heartbeats may reach the server (a proxy that lets
        no WebSocket pass, say), can do nothing with its runs: others shall have them.
        """
        return [
            station.name
            for loop, station in list(self._stations.items())
            if not loop.is_closed() and station.link.down_for < self._lease
        ]

    def execute(self, station: Station, claimed: dict[str, Any]) -> None:
        claim = Claimed.unpack(claimed)
        session = RemoteSession(station, claim.run, claim.memo, claim.stream)
        station.adopt(session)
        station.spawn(self._execute(station, session, claim), f"execute {session.id}")

    async def _execute(self, station: Station, session: RemoteSession, claim: Claimed) -> None:
        """Hand a claimed run to the application it came from."""
        try:
            executor = self._executors.get(claim.root_path, self._default)
            if executor is None or station.is_releasing:
                await session.release("released")
            elif claim.request is None:
                await session.end(Fail("request_missing", None))
            else:
                request = self._unsealed(session.id, claim.request)
                if request is None:
                    await session.park("request_sealed")
                else:
                    run = claim.run
                    await executor(Reentry(session, run.function_id, request, claim.retries))
        except EngineError as error:
            logger.error("run %s could not be executed: %s", session.id, error.explanation)
            await session.abandon()

    def _unsealed(self, run_id: str, sealed: bytes) -> StoredRequest | None:
        try:
            return StoredRequest.unpack(self._keys_of_app.unseal(run_id, "request", sealed))
        except UnsealError as error:
            logger.error("run %s is parked: %s", run_id, error)
            return None

    # Runs

    @property
    def is_healthy(self) -> bool:
        station = self._stations.get(_running_loop())
        return station is not None and station.is_open

    @property
    def max_steps(self) -> int:
        return self.policy.max_steps

    @property
    def max_result(self) -> int:
        return self.policy.max_result

    def now(self) -> int:
        return math.ceil(time.monotonic() * 1_000) + self._offset  # as `steady_now`: asked often

    def call_later(self, delay: int, callback: Callable[[], None]) -> Callable[[], None]:
        return asyncio.get_running_loop().call_later(delay / 1_000, callback).cancel

    def add_executor(self, root_path: str, executor: Executor, is_whole: bool) -> None:
        if self._executors.get(root_path, executor) != executor:
            logger.warning(
                "two applications of this process have the name %r at the server: what is still to "
                "be done for requests of either goes on in the one that was started last. Give "
                "each one a name of its own: app_name=…",
                self.app_name,
            )
        self._executors[root_path] = executor
        if is_whole:
            self._default = executor
        for loop, station in list(self._stations.items()):
            _on(loop, station.executors_changed)

    @property
    def is_admitting(self) -> bool:
        station = self._stations.get(_running_loop())
        return station is not None and not (station.is_releasing or station.is_held)

    async def admit(self) -> None:
        station = self._station
        if station.is_releasing:
            raise EngineClosedError("this server is shutting down")
        for _ in range(round(_ADMISSION / 0.05)):
            if not station.is_held:
                return
            await asyncio.sleep(0.05)

    def register(self, new: NewRun) -> Session:
        return self._station.register(new)

    def proceed_without(self, session: Session | None, error: EngineError) -> UnkeptSession | None:
        if not isinstance(error, StorageError):
            return None
        if isinstance(session, RemoteSession):
            session.renounce()
        run_id = session.id if session is not None else ""
        return UnkeptSession(run_id, self.now(), error.explanation)

    def pack_request(self, run_id: str, request: StoredRequest) -> bytes:
        return self._keys_of_app.seal(run_id, "request", request.pack())

    def pack_response(self, run_id: str, response: StoredResponse) -> bytes:
        return self._keys_of_app.seal(run_id, "response", response.pack())

    async def key_holder(self, key: str) -> KeyHolder | None:
        holder = await self._station.ask("key_holder", {"key": key})
        return None if holder is None else KeyHolder(*holder)

    async def outcome(self, run_id: str, timeout: int) -> Outcome | None:
        station, loop = self._station, asyncio.get_running_loop()
        deadline = loop.time() + timeout / 1_000
        while True:
            left = 0.0 if station.is_releasing else max(0.0, deadline - loop.time())
            about = {"run": run_id, "timeout": round(left * 1_000)}
            try:
                found = await station.ask("outcome", about, left, is_releasable=left > 0)
            except ReleasedError:
                continue
            if found is None:
                return None
            outcome = self._outcome(run_id, found)
            if outcome.status in _SETTLED or not left or loop.time() >= deadline:
                return outcome
            # The server that was asked is about to end: the next one is waited for.
            await asyncio.sleep(_PAUSE)

    def _outcome(self, run_id: str, found: dict[str, Any]) -> Outcome:
        response = None
        if found["response"] is not None:
            sealed = wire.unpack_bytes(found["response"])
            packed = self._keys_of_app.unseal(run_id, "response", sealed)
            response = StoredResponse.unpack(packed)
        error = found["error"]
        return Outcome(
            run_id=run_id,
            status=found["status"],
            reason=found["reason"],
            response=response,
            omitted=found["omitted"],
            until_delivered=found["until_delivered"],
            error=str(failures.decode(error.encode())) if error else "",
            method=found["method"],
            path=found["path"],
        )

    def read_stream(self, run_id: str, start: StreamStart) -> StreamReader:
        return self._station.read(run_id, start)

    async def stream_tail(self, run_id: str) -> int:
        return wire.whole(await self._station.ask("stream_tail", {"run": run_id}))

    async def until_idle(self, run_id: str) -> None:
        station = self._station
        if station.is_releasing or station.is_held:
            return
        try:
            await station.ask("until_idle", {"run": run_id}, _AS_LONG_AS_IT_TAKES, True)
        except ReleasedError:
            return

    async def cancel(self, run_id: str, reason: str) -> bool:
        return bool(await self._station.ask("cancel", {"run": run_id, "reason": reason}))

    def delivered(self, run_id: str) -> None:
        self.spawn(self._delivered(run_id), f"tell that the response of {run_id} is delivered")

    async def _delivered(self, run_id: str) -> None:
        try:
            await self._station.ask("delivered", {"run": run_id})
        except EngineError:
            pass  # then it is kept for an hour

    async def send_event(self, event: NewEvent) -> str:
        about = {"event": wire.pack_event(event)}
        return wire.text(await self._anywhere(lambda one: one.ask("send_event", about)))

    async def send_signal(self, name: str, data: bytes) -> bool:
        about = {"name": name, "data": data.decode()}
        return bool(await self._anywhere(lambda one: one.ask("send_signal", about)))

    async def _anywhere(self, work: Callable[[Station], Coroutine[Any, Any, T]]) -> T:
        """Ask from this event loop, or if it serves no application, from one that does."""
        here = asyncio.get_running_loop()
        living = {loop: one for loop, one in self._stations.items() if not loop.is_closed()}
        if here in living or not living:
            return await work(self._station)
        loop, station = next(iter(living.items()))
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(station), loop))

    def track(self, method: str, route: str, status: int, elapsed: int, run_id: str | None) -> None:
        about = {
            "method": method,
            "route": route,
            "status": status,
            "elapsed": elapsed,
            "run": run_id,
        }
        self._station.tell("track", about)

    # Keys

    @property
    def _keys_of_app(self) -> Keyring:
        if self._keyring is None:
            raise EngineClosedError("the engine is not running")
        return self._keyring

    def sign_run(self, run_id: str, may_cancel: bool = False) -> str:
        return self._keys_of_app.sign_run(run_id, may_cancel)

    def verify_run(self, run_id: str, token: str) -> Grant | None:
        return self._keys_of_app.verify_run(run_id, token)


def _policy(settings: Settings, told: dict[str, Any]) -> Policy:
    """The limits of the server, and of the application where they are lower; its own back-off."""
    policy = Policy(**{name: told[name] for name in Policy._fields if name in told})
    return policy._replace(
        max_steps=min(policy.max_steps, settings.max_steps),
        max_result=min(policy.max_result, settings.max_result),
        max_memo=min(policy.max_memo, settings.max_memo),
        max_stream=min(policy.max_stream, settings.max_stream),
        retry_base=settings.retry_base,
        retry_factor=settings.retry_factor,
        retry_cap=settings.retry_cap,
    )


_running_loop: Callable[[], Any] = asyncio._get_running_loop


def _on(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Call back on an event loop: at once, if it is this one."""
    if loop is _running_loop():
        callback()
    elif not loop.is_closed():
        loop.call_soon_threadsafe(callback)


_shared: dict[tuple[str | None, str, str | None], RemoteEngine] = {}


def remote_engine(settings: Settings) -> RemoteEngine:
    """The engine of this process for the server, the name and the key of `settings`."""
    key = settings.server_url, settings.app_name, settings.signing_key
    if key not in _shared:
        _shared[key] = RemoteEngine(settings)
    return _shared[key]


def running_remote_engine(settings: Settings) -> RemoteEngine | None:
    """The one that runs in this process: the only one, or the one of these settings."""
    running = {key: engine for key, engine in _shared.items() if engine.is_running}
    if len(running) > 1:
        return running.get((settings.server_url, settings.app_name, settings.signing_key))
    return next(iter(running.values()), None)
