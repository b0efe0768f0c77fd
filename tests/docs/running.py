"""Running a page's Python: its blocks one after the other, as one module."""

from __future__ import annotations

import ast
import asyncio
import inspect
import linecache
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import CodeType, ModuleType

import httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from durable_endpoints import endpoint, endpoint_app
from durable_endpoints.testing import VirtualEngine
from tests.docs.pages import Block, name_of

_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_ADDRESS = "http://localhost:8000"
"""Where the pages' clients look for the pages' applications."""


@asynccontextmanager
async def trying(app: ASGIApp) -> AsyncIterator[tuple[httpx.AsyncClient, VirtualEngine]]:
    """A client for a page's application, and the engine it runs on."""
    engine = VirtualEngine()
    async with engine.client(app) as client:
        yield client, engine


class Page:
    """A page that runs: its module, and the server that it has started, if any."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.module = self._new_module()
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._url = _ADDRESS

    async def run(self, found: list[Block]) -> None:
        """Run all Python of the page. Tracebacks show the page's own lines."""
        text, name = self.path.read_text("utf-8"), name_of(self.path)
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        try:
            for block in found:
                if block.language == "python":
                    await self._run_block(block)
        finally:
            sys.modules.pop(self.module.__name__, None)
            await self._stop_serving()

    async def _run_block(self, block: Block) -> None:
        if block.starts_over:
            self.module = self._new_module()
        above = "\n" * (block.line - 1)
        source = above + block.code.replace(_ADDRESS, self._url)
        code = compile(source, name_of(self.path), "exec", _FLAGS, dont_inherit=True)
        if block.in_handler:
            await _run_in_handler(code, self.module)
        else:
            await _run(code, self.module)
            await _run_tests(code, self.module)

    def _new_module(self) -> ModuleType:
        name = f"page_{self.path.stem.replace('-', '_')}"
        module = sys.modules[name] = ModuleType(name)
        module.__dict__.update(trying=trying, serve=self._serve)
        return module

    async def _serve(self, app: ASGIApp) -> None:
        """Serve `app` in earnest, for the clients of the blocks that follow."""
        config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"

    async def _stop_serving(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving


async def _run(code: CodeType, module: ModuleType) -> None:
    made = eval(code, module.__dict__)
    if inspect.isawaitable(made):
        await made


async def _run_in_handler(code: CodeType, module: ModuleType) -> None:
    """Run a block that is the inside of a handler, and let all the time pass that it wants."""

    async def handler(request: Request) -> PlainTextResponse:
        await _run(code, module)
        return PlainTextResponse("done")

    app = endpoint_app(endpoint(retries=0)(handler))
    async with VirtualEngine(auto_advance=True).client(app, follow_redirects=True) as client:
        response = await client.post("/inside?order_id=7")
        assert response.text == "done", response.text


async def _run_tests(code: CodeType, module: ModuleType) -> None:
    """Run the test functions that a block defines: plain ones in a thread, without an event loop,
    and with the fixture of the pytest plugin if they want it."""
    for name in code.co_names:
        function = module.__dict__.get(name)
        if not name.startswith("test_") or not inspect.isfunction(function):
            continue
        if inspect.iscoroutinefunction(function):
            await function()
        else:
            await asyncio.to_thread(_run_plain_test, function)


def _run_plain_test(function: Callable[..., None]) -> None:
    if "durable_engine" in inspect.signature(function).parameters:
        with VirtualEngine() as engine:
            function(durable_engine=engine)
    else:
        function()
