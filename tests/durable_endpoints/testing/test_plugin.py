"""The fixture `durable_engine`, in sessions of pytest as users run them."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import durable_endpoints

_PLACE = str(Path(durable_endpoints.__file__).parent.parent)

APP = """
from fastapi import FastAPI
from durable_endpoints import DurableEndpointsMiddleware, endpoint, step

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)

@app.get("/")
@endpoint
async def remind() -> str:
    await step.sleep("nap", "24h")
    return "wake up"
"""

PLAIN = """
from starlette.testclient import TestClient
from app import app

def test_with_the_test_client(durable_engine):
    durable_engine.auto_advance = True
    assert TestClient(app).get("/").json() == "wake up"

def test_the_next_one_has_an_engine_of_its_own(durable_engine):
    assert durable_engine.runs() == []
    with TestClient(app, follow_redirects=False) as client:
        client.get("/")
        assert durable_engine.sync.finish().json() == "wake up"

def test_with_a_loop_of_its_own(durable_engine):
    import asyncio

    async def ask():
        async with durable_engine.client(app) as client:
            await client.get("/")
            return await durable_engine.finish()

    assert asyncio.run(ask()).json() == "wake up"
"""

ASYNC = """
import pytest
from app import app

@pytest.mark.anyio
async def test_under_a_plugin(durable_engine):
    async with durable_engine.client(app) as client:
        await client.get("/")
        assert (await durable_engine.finish()).json() == "wake up"

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""

UNUSED = """
import sys
import tomllib

def test_nothing():
    assert "durable_endpoints.pytest_plugin" in sys.modules
    kit = ("durable_endpoints.testing", "durable_endpoints_server")
    assert not [name for name in sys.modules if name.startswith(kit)]
"""


def session(folder: Path, *arguments: str, **files: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on `files` in a folder of their own."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, "utf-8")
    plugins = ["-p", "durable_endpoints.pytest_plugin", "-p", "anyio.pytest_plugin"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *plugins, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        # Not as it is installed: this checkout need not be.
        env={**os.environ, "PYTHONPATH": _PLACE, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        timeout=60,
        check=False,
    )


def test_the_fixture_in_plain_tests_and_under_anyio(tmp_path: Path) -> None:
    done = session(tmp_path, app=APP, test_plain=PLAIN, test_anyio=ASYNC)
    assert "4 passed" in done.stdout, done.stdout
    left = {path.name for path in tmp_path.iterdir()}
    assert ".durable" not in left


def test_the_plugin_loads_no_engine_where_it_is_not_used(tmp_path: Path) -> None:
    done = session(tmp_path, "-p", "no:cacheprovider", test_unused=UNUSED)
    assert "1 passed" in done.stdout, done.stdout


def test_pytest_finds_the_plugin_by_its_entry_point() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8")
    points = tomllib.loads(text)["project"]["entry-points"]["pytest11"]
    assert list(points.values()) == ["durable_endpoints.pytest_plugin"]
