"""How many commits a request waits for: what `docs/performance.md` says of that is exact."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import DurableEndpointsMiddleware, endpoint, step
from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.options import Checkpoint
from durable_endpoints.testing.lifespan import running
from durable_endpoints_server.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio


@pytest.mark.embedded("commits of the SQLite store are counted")
@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    # The run's creation goes with its first step, its end with its last one.
    [("each", [2, 1, 2]), ("background", [5])],
)
async def test_three_steps_are_as_few_commits_as_can_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Checkpoint,
    expected: list[int],
) -> None:
    commits: list[int] = []
    write = SqliteStore._write

    def counting(
        store: SqliteStore, changes: Sequence[list[Any]], is_relaxed: bool
    ) -> Collection[int]:
        commits.append(len(changes))
        return write(store, changes, is_relaxed)

    monkeypatch.setattr(SqliteStore, "_write", counting)
    app = FastAPI()
    database = str(tmp_path / "runs.db")
    app.add_middleware(DurableEndpointsMiddleware, database=database, checkpoint=checkpoint)

    async def increase(value: int) -> int:
        return value + 1

    @app.get("/")
    @endpoint
    async def three() -> int:
        value = 0
        for number in range(3):
            value = await step.run(f"step-{number}", increase, value)
        return value

    async with (
        running(app),
        httpx.AsyncClient(transport=AppTransport(app), base_url="http://app") as client,
    ):
        commits.clear()
        assert (await client.get("/")).json() == 3
        assert commits == expected
