"""The application, and the language models it asks: all of them real servers."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.chaos.process import Server, free_port
from tests.interop.conftest import node_modules as node_modules
from tests.llm.models import PAUSE, Llmock
from tests.llm.texts import SCRIPTS, SIZES, uncut
from tests.requirements import need


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    need(find_spec("openai") is not None, "OpenAI's client")
    folder = tmp_path_factory.mktemp("server")
    with Server(
        folder,
        app="tests.llm.app:app",
        alive="/endings/none",
        DURABLE_ENDPOINTS_RETRY_BASE="50ms",
    ) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llmock]:
    with _llmock(tmp_path_factory.mktemp("provider")) as url:
        yield Llmock(url)


@pytest.fixture(scope="session")
def other_provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llmock]:
    with _llmock(tmp_path_factory.mktemp("other")) as url:
        yield Llmock(url)


@contextmanager
def _llmock(folder: Path) -> Iterator[str]:
    need(find_spec("llmock") is not None, "llmock")
    with Server(
        folder,
        "--factory",
        app="llmock.main:create_app",
        alive="/_llmock/scenario",
        LLMOCK_STREAM_CHUNK_DELAY_MS=str(round(PAUSE * 1_000)),
    ) as server:
        yield server.url


@pytest.fixture(scope="session")
def aimock(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of aimock. Its model `by-N` sends `uncut(SCRIPTS, N)`, N units of UTF-16 at a time,
    and its model `cut` sends SCRIPTS by single units. It escapes only what is no character."""
    fixtures = tmp_path_factory.mktemp("aimock") / "fixtures.json"
    models = [("cut", SCRIPTS, 1), *((f"by-{n}", uncut(SCRIPTS, n), n) for n in SIZES)]
    answers = [
        {"match": {"model": model}, "response": {"content": text}, "chunkSize": size}
        for model, text, size in models
    ]
    fixtures.write_text(json.dumps({"fixtures": answers}))
    port = free_port()
    command = [node_modules / ".bin" / "llmock", "-p", str(port), "-f", fixtures]
    with subprocess.Popen([*command, "--log-level", "silent"]) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_alive(f"{url}/health")
            yield url
        finally:
            process.kill()


def wait_until_alive(url: str, patience: float = 20) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            httpx.get(url, timeout=1).raise_for_status()
            return
        except httpx.HTTPError:
            assert time.monotonic() < deadline, url
            time.sleep(0.02)


@pytest.fixture
def model() -> str:
    """The name of a model that no other test talks to."""
    return uuid.uuid4().hex
