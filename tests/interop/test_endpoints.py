"""An application made with Inngest's SDK, on this server: in development, and with keys."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.chaos.process import Server, free_port
from tests.interop.clients import FOLDER

pytestmark = pytest.mark.anyio

in_development_too = pytest.mark.parametrize("site", ["dev", "serve"], indirect=True)
with_keys = pytest.mark.parametrize("site", ["serve"], indirect=True)

KEY = "signkey-test-" + "12ab" * 16
EVENT_KEY = "key-for-events-12345"


class App:
    """The application's process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self.bodies: Counter[str] = Counter()

    def start(self, server: str, **env: str) -> None:
        command = ["node", str(FOLDER / "endpoints.js"), str(self.port)]
        env = {**os.environ, "INNGEST_BASE_URL": server, "INNGEST_EVENT_KEY": EVENT_KEY, **env}
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        self._reader = Thread(target=self._read)
        self._reader.start()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 20
        while not self.bodies["ready"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.bodies[line.strip()] += 1

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


class Site:
    """Server and application."""

    def __init__(self, server: Server, app: App) -> None:
        self.server = server
        self.app = app

    async def get(self, path: str, method: str = "GET", **options: Any) -> httpx.Response:
        """Ask the application, and follow where it leads."""
        async with httpx.AsyncClient(timeout=20) as client:
            url = f"{self.app.origin}/{path}"
            return await client.request(method, url, **{"follow_redirects": True, **options})

    async def send(self, name: str, data: Any) -> None:
        async with httpx.AsyncClient() as client:
            url = f"{self.server.url}/e/{EVENT_KEY}"
            sent = await client.post(url, json={"name": name, "data": data})
            assert sent.json()["status"] == 200


@pytest.fixture(scope="module")
def site(
    request: pytest.FixtureRequest, node_modules: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    kind: str = request.param
    app = App()
    ours, theirs = {}, {"INNGEST_DEV": "1"}
    if kind == "serve":
        ours = {
            "DURABLE_ENDPOINTS_SIGNING_KEY": KEY,
            "DURABLE_ENDPOINTS_EVENT_KEY": EVENT_KEY,
            "DURABLE_ENDPOINTS_APP_ORIGIN": app.origin,
        }
        theirs = {"INNGEST_SIGNING_KEY": KEY}
    server = Server(
        tmp_path_factory.mktemp(kind),
        *("--retry-interval", "100ms"),
        app=kind,
        alive="/health",
        module="durable_endpoints_server",
        **ours,
    )
    app.start(server.url, **theirs)
    try:
        with server:
            app.wait_until_ready()
            yield Site(server, app)
    finally:
        app.kill()


@in_development_too
async def test_all_that_an_endpoint_can_do(site: Site) -> None:
    """One after the other they would take a while: Inngest's SDK sleeps whole seconds."""
    asked = {
        "success": '{"a":1,"b":2}',
        "steplessly": '"no steps"',
        "sleeping": '"\\"hello world\\""',
        "retried": '"third time"',
        "caught": '"caught no way"',
        "throwing": '"recovered"',
        "later": '"later"',
        "parallel": "6",
        "token/success": '{"a":1,"b":2}',
        "proxied/sleeping": '"hello world"',
        "waiting?timeout=1s": '"timed out"',
    }
    names = [f"{path}{'&' if '?' in path else '?'}of={n}" for n, path in enumerate(asked)]
    answers = await asyncio.gather(*map(site.get, names))
    assert {path: answer.text for path, answer in zip(asked, answers, strict=True)} == asked
    assert {answer.status_code for answer in answers} == {200}
    unsupported = await site.get("unsupported")
    assert "unsupported" in unsupported.json()
    bodies = site.app.bodies
    assert (bodies["3 flaky"], bodies["4 final"], bodies["5 a"], bodies["5 handler"]) == (
        3,
        1,
        1,
        3,
    )
    assert [bodies[f"7 {step}"] for step in ("one", "two", "three")] == [1, 1, 1]


@with_keys
async def test_a_failure_is_told_to_whoever_waits_without_the_stack(site: Site) -> None:
    direct, proxied = await asyncio.gather(site.get("failing?of=d"), site.get("proxied/failing"))
    for answer in (direct, proxied):
        assert answer.status_code == 500
        assert answer.json()["error"] == {"name": "Error", "message": "never works"}
        assert "endpoints.js" not in answer.text
    assert site.app.bodies["d always"] == 4


@with_keys
async def test_where_the_answer_will_be_is_told_by_redirect_or_token(site: Site) -> None:
    redirect = await site.get("sleeping?of=r", follow_redirects=False)
    assert redirect.status_code == 302
    token = (await site.get("token/sleeping?of=t")).json()
    assert redirect.headers["location"].startswith(f"{site.server.url}/v1/http/runs/")
    async with httpx.AsyncClient(timeout=20) as client:
        url = f"{site.server.url}/v1/checkpoint/{token['run_id']}/output"
        forged = await client.get(url, params={"token": token["token"][:-1] + "x"})
        answer = await client.get(url, params={"token": token["token"]})
    assert forged.status_code == 401
    assert answer.json() == '"hello world"'


@with_keys
async def test_an_event_that_fits_ends_a_wait(site: Site) -> None:
    fits = "async.data.ok == true && event.data.method == 'POST'"
    asking = asyncio.create_task(
        site.get("waiting", "POST", params={"of": "e", "if": fits}, json={"b": 1.0, "a": "\u00e9"})
    )
    await asyncio.sleep(0.1)
    await site.send("approved/e", {"ok": False})
    await site.send("approved/e", {"ok": True, "by": "me"})
    answer = await asking
    assert answer.json() == {"approved": {"ok": True, "by": "me"}}


@with_keys
async def test_a_run_survives_the_server_wherever_it_was(site: Site) -> None:
    paths = ["sleeping?of=k", "slow?of=k", "waiting?of=k", "parallel?of=k"]
    begun = await asyncio.gather(*(site.get(path, follow_redirects=False) for path in paths))
    await asyncio.sleep(1.2)  # the naps are over, and `slow` is under way
    site.server.kill()
    site.server.start()
    await site.send("approved/k", {"n": 1})
    async with httpx.AsyncClient(timeout=20) as client:
        asked = (client.get(one.headers["location"]) for one in begun)
        answers = await asyncio.gather(*asked)
    assert [answer.json() for answer in answers] == [
        '"hello world"',
        "slow, but done",
        {"approved": {"n": 1}},
        6,
    ]
    assert site.app.bodies["k a"] == 1
