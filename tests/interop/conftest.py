"""Inngest's client, installed once, in Node and in Chromium; and an application for it to read."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from filelock import FileLock

from tests.chaos.process import Server
from tests.interop.clients import FOLDER, Chromium, Client, Node
from tests.requirements import need

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The packages of `package-lock.json`, installed by the first session that needs them."""
    need(_has_node(), "Node 20")
    need(shutil.which("npm") is not None, "npm")
    modules = FOLDER / "node_modules"
    installed = modules / ".installed"
    wanted = (FOLDER / "package-lock.json").read_bytes()
    with FileLock(FOLDER / "node_modules.lock"):
        if not installed.exists() or installed.read_bytes() != wanted:
            command = [
                "npm",
                "ci",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--prefer-offline",
            ]
            done = subprocess.run(command, cwd=FOLDER, capture_output=True, check=False)
            need(done.returncode == 0, "npm packages of tests/interop")
            installed.write_bytes(wanted)
    return modules


def _has_node() -> bool:
    if shutil.which("node") is None:
        return False
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return int(version.stdout.removeprefix("v").split(".")[0]) >= 20


@pytest.fixture(scope="session")
def site(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a page, on an origin of its own, that has the bundled `reader.js`."""
    folder = tmp_path_factory.mktemp("site")
    bundle = [
        str(node_modules / ".bin" / "esbuild"),
        str(FOLDER / "reader.js"),
        "--bundle",
        "--format=iife",
        "--global-name=interop",
        f"--outfile={folder / 'interop.js'}",
        "--log-level=warning",
    ]
    subprocess.run(bundle, check=True)
    (folder / "index.html").write_text(
        "<!doctype html><title>reader</title><link rel=icon href=data:,>"
        "<script src=interop.js></script>"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=folder)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def node(node_modules: Path) -> Node:
    return Node()


@pytest.fixture(scope="module")
def chromium(request: pytest.FixtureRequest) -> Iterator[Chromium]:
    """Ends with its module: while it is open, this thread cannot run another event loop."""
    need(CHROMIUM is not None, "Chromium")
    need(find_spec("playwright") is not None, "Playwright")
    site = request.getfixturevalue("site")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(site)
        yield Chromium(page)
        browser.close()


@pytest.fixture(scope="module", params=["node", "chromium"])
def client(request: pytest.FixtureRequest) -> Client:
    """Inngest's client: each test runs in Node and in Chromium."""
    found: Client = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with Server(
        folder,
        app="tests.interop.app:app",
        alive="/tries/nothing",
        DURABLE_ENDPOINTS_DATABASE=f"sqlite:///{folder / 'endpoints.db'}",
        DURABLE_ENDPOINTS_RETRY_BASE="100ms",
    ) as server:
        yield server


@pytest.fixture
def name() -> str:
    """A name no other test uses."""
    return uuid.uuid4().hex


@pytest.fixture
def llm(node_modules: Path) -> Iterator[str]:
    """The URL of a language model's API whose first answer breaks off."""
    with subprocess.Popen(["node", str(FOLDER / "llm.js")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()
        process.kill()
