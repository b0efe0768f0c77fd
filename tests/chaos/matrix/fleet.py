"""The processes of one mode: started, watched, started again when they die, and let go on when they
stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import httpx
import orjson

from tests.chaos.matrix.boundaries import Mode
from tests.chaos.matrix.jobs import Job, to_json
from tests.chaos.matrix.nursery import News, Nursery
from tests.chaos.matrix.proxy import FaultyProxy
from tests.chaos.matrix.switchboard import Switchboard
from tests.chaos.process import free_port

LEASE: Final = 2.0
"""Seconds. A stop for longer than that loses the runs."""
CLIENTS: Final = ("alice", "bob")
_KEY: Final = "0123456789abcdef" * 4
_BRIEF: Final = 0.15
"""Seconds for which a process is stopped at least."""
_START: Final = 90.0
"""Seconds in which a process that was started takes requests."""


class Fleet:
    """An application on the embedded engine; or a server, and two replicas of an application. And
    two clients, each behind a proxy."""

    def __init__(self, mode: Mode, folder: Path) -> None:
        self.mode = mode
        self.folder = folder
        self.deaths: list[str] = []
        """What died, or ended, and was not told to."""
        self.on_death: Callable[[str], None] = lambda name: None
        """Told when a process has died, before it is started again."""
        self.away: dict[str, float] = {}
        """Seconds until a process that stopped goes on, or one that died is started again."""
        self.boards: dict[str, Switchboard] = {}
        self.proxies: dict[str, FaultyProxy] = {}
        self._ports: dict[str, int] = {}
        self._alive: dict[str, int] = {}
        self._done: dict[str, asyncio.Event] = {}
        self._nursery = Nursery(self._hear)
        self._stack = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_over = False

    @property
    def database(self) -> Path:
        return self.folder / "runs.db"

    @property
    def owner(self) -> str:
        """The process that has the database."""
        return "app" if self.mode == "embedded" else "server"

    @property
    def bodies(self) -> Path:
        """Where the application's bodies write."""
        return self.folder / "bodies"

    def records(self, client: str, prefix: str) -> Path:
        """Where a client writes."""
        return self.folder / f"{prefix}.{client}"

    async def __aenter__(self) -> Fleet:
        self.folder.mkdir(parents=True, exist_ok=True)
        apps = ("app",) if self.mode == "embedded" else ("app", "other")
        for name in (*apps, "server", *CLIENTS):
            self._ports[name] = free_port()
            self.boards[name] = Switchboard(self.folder / f"{name}.board")
        await self._stack.enter_async_context(self._nursery)
        for app, client in zip((apps * 2)[:2], CLIENTS, strict=True):
            await self._add_proxy(f"{client}-app", self._ports[app])
        if self.mode == "server":
            for app in apps:
                await self._add_proxy(f"{app}-server", self._ports["server"])
            self._start("server")
        for app in apps:
            self._start(app)
        try:
            await self.ready()
        except TimeoutError:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()
        for board in self.boards.values():
            board.close()

    async def _add_proxy(self, name: str, target: int) -> None:
        self.proxies[name] = await self._stack.enter_async_context(FaultyProxy(target))

    # Processes

    def _start(self, name: str) -> None:
        environment = {
            "FOLDER": str(self.folder),
            "SWITCHBOARD": str(self.folder / f"{name}.board"),
            "DURABLE_ENDPOINTS_SIGNING_KEY": _KEY,
            "DURABLE_ENDPOINTS_EVENT_KEY": _KEY,
            "DURABLE_ENDPOINTS_RETRY_BASE": "20ms",
            "DURABLE_ENDPOINTS_HEARTBEAT": "500ms",
            "DURABLE_ENDPOINTS_DATABASE": f"sqlite:///{self.database}",
        }
        if name == "server":
            arguments = ("--port", str(self._ports[name]), "--lease", f"{LEASE}s")
            self._nursery.order(name, "server", self.folder, *arguments, **environment)
            return
        if self.mode == "server":
            environment["DURABLE_ENDPOINTS_SERVER_URL"] = self.proxies[f"{name}-server"].url
            environment["DURABLE_ENDPOINTS_SEALING_KEY"] = _KEY[::-1]
        self._nursery.order(name, "app", self.folder, str(self._ports[name]), **environment)

    def start_clients(self, prefix: str, jobs: list[Job]) -> list[asyncio.Event]:
        """Let the clients do jobs, through all of their lives. The events say when that is done."""
        self._prefix = prefix
        self._jobs = self.folder / f"{prefix}.jobs"
        self._jobs.write_bytes(orjson.dumps(to_json(jobs)))
        for name in CLIENTS:
            self._done[name] = asyncio.Event()
            self._start_client(name)
        return [self._done[name] for name in CLIENTS]

    def _start_client(self, name: str) -> None:
        self._nursery.order(
            name,
            "client",
            self.folder,
            self.proxies[f"{name}-app"].url,
            str(self._jobs),
            str(self.records(name, self._prefix)),
            *(
                [f"{self.proxies['other-server'].url}/e/{_KEY}"]
                if self._asks_the_server(name)
                else []
            ),
            SWITCHBOARD=str(self.folder / f"{name}.board"),
        )

    def _asks_the_server(self, client: str) -> bool:
        """Whether a client sends its events to the server itself, and not to the application."""
        return self.mode == "server" and client == CLIENTS[1]

    async def ready(self) -> None:
        """Return when all processes take requests. Raises `TimeoutError`."""
        paths = {"server": "/health", "app": "/alive", "other": "/alive"}
        async with (
            httpx.AsyncClient(timeout=1, trust_env=False, verify=False) as http,
            asyncio.timeout(_START),
        ):
            for name, path in paths.items():
                if name == "app" or self.mode == "server":
                    await self._is_answering(http, f"http://127.0.0.1:{self._ports[name]}{path}")

    async def _is_answering(self, http: httpx.AsyncClient, url: str) -> None:
        while True:
            try:
                if (await http.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.01)

    def _hear(self, news: News) -> None:
        if news.what == "born":
            self._alive[news.name] = news.process
        elif news.what == "stopped":
            self._spawn(self._go_on(news))
        else:
            self._alive.pop(news.name, None)
            if not self._is_over:
                self._ended(news)

    def _ended(self, news: News) -> None:
        if news.name in CLIENTS and news.code == 0:
            self._done[news.name].set()
            return
        if news.code not in (-signal.SIGKILL, *self._ends_of_sigterm(news.name)):
            self.deaths.append(f"{news.name} ended: {news.code}")
        self.on_death(news.name)
        if news.name not in CLIENTS:
            self._spawn(self._start_again(news.name))
        elif not self._done[news.name].is_set():
            self._start_client(news.name)

    def _ends_of_sigterm(self, name: str) -> tuple[int, ...]:
        """How a process ends that was asked to: uvicorn raises the signal again."""
        return () if name in CLIENTS else (0,) if name == "server" else (0, -signal.SIGTERM)

    async def _start_again(self, name: str) -> None:
        await asyncio.sleep(self.away.get(name, 0.0))
        self._start(name)

    async def _go_on(self, news: News) -> None:
        await asyncio.sleep(max(self.away.get(news.name, 0.0), _BRIEF))
        if self._alive.get(news.name) == news.process:
            os.kill(news.process, signal.SIGCONT)

    def kill_all(self) -> None:
        """Kill all processes but the clients now, wherever they are."""
        for name in list(self._alive):
            if name not in CLIENTS:
                self.kill(name)

    def kill(self, name: str) -> None:
        """Kill a process now, wherever it is."""
        if name in self._alive:
            with contextlib.suppress(ProcessLookupError):  # it has just died, which is not news yet
                os.kill(self._alive[name], signal.SIGKILL)

    def give_up(self, name: str) -> None:
        """Do not start a client again."""
        self._done[name].set()
        self.kill(name)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def disarm(self) -> None:
        """No more faults."""
        for board in self.boards.values():
            board.disarm()
        for proxy in self.proxies.values():
            proxy.heal()
