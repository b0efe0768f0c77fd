"""Running a page's Python: its blocks one after the other, as one module."""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from durable_endpoints import endpoint, endpoint_app
from durable_endpoints.testing import VirtualEngine
from tests.docs.pages import Block, name_of

_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@asynccontextmanager
async def trying(
    app: Starlette, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, VirtualEngine]]:
    """A client for a page's application, and the engine it runs on."""
    engine = VirtualEngine(**settings)
    for middleware in app.user_middleware:
        middleware.kwargs["engine"] = engine
    app.middleware_stack = None
    async with engine.client(app) as client:
        yield client, engine


async def run_page(page: Path, found: list[Block]) -> None:
    """Run all Python of a page. Tracebacks show the page's own lines."""
    text = page.read_text("utf-8")
    linecache.cache[name_of(page)] = (len(text), None, text.splitlines(True), name_of(page))
    module = _new_module(page)
    for block in found:
        if block.language != "python":
            continue
        if block.starts_over:
            module = _new_module(page)
        code = _compiled(page, block)
        if block.in_handler:
            await _run_in_handler(code, module)
        else:
            await _run(code, module)
            await _run_tests(code, module)


def _new_module(page: Path) -> ModuleType:
    name = f"page_{page.stem.replace('-', '_')}"
    module = sys.modules[name] = ModuleType(name)
    module.__dict__["trying"] = trying
    return module


def _compiled(page: Path, block: Block) -> CodeType:
    above = "\n" * (block.line - 1)
    code: CodeType = compile(above + block.code, name_of(page), "exec", _FLAGS, dont_inherit=True)
    return code


async def _run(code: CodeType, module: ModuleType) -> None:
    made = eval(code, module.__dict__)
    if inspect.isawaitable(made):
        await made


async def _run_in_handler(code: CodeType, module: ModuleType) -> None:
    """Run a block that is the inside of a handler, and let all the time pass that it wants."""

    async def handler(request: Request) -> PlainTextResponse:
        await _run(code, module)
        return PlainTextResponse("done")

    engine = VirtualEngine()
    app = endpoint_app(endpoint(retries=0)(handler), engine=engine)
    async with engine.client(app) as client:
        response = await client.post("/inside?order_id=7")
        for _ in range(20):
            if response.status_code != 303:
                break
            await engine.advance("30d")
            response = await client.get(response.headers["location"])
        assert response.text == "done", response.text


async def _run_tests(code: CodeType, module: ModuleType) -> None:
    """Run the test functions that a block defines."""
    for name in code.co_names:
        function = module.__dict__.get(name)
        if name.startswith("test_") and inspect.isfunction(function):
            made = function()
            if inspect.isawaitable(made):
                await made
