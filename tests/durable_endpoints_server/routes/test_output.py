"""Waiting at `/output`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from durable_endpoints.ids import new_run_id
from durable_endpoints_server.app import create_app
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore
from tests.durable_endpoints_server.helpers import new_run

pytestmark = pytest.mark.anyio


async def test_who_waits_no_more_is_not_waited_for() -> None:
    server = Server(ServerSettings(dev=True), MemoryStore())
    app = create_app(server)
    await server.start()
    try:
        run_id = new_run_id()
        await server.host.register(new_run(run_id), "inngest").acknowledge()
        token = server.keys.sign_run("output", run_id)
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": f"/v1/checkpoint/{run_id}/output",
            "raw_path": b"",
            "root_path": "",
            "scheme": "http",
            "query_string": f"token={token}".encode(),
            "headers": [],
        }
        gone = asyncio.Event()
        answers: list[Message] = []

        async def receive() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            answers.append(message)

        waiting = asyncio.ensure_future(app(scope, receive, send))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        gone.set()
        await asyncio.wait_for(waiting, 5)
        assert answers == []
    finally:
        await server.stop()
