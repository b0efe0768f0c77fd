"""Streams of an application made with Inngest's SDK, on our server, as Inngest's client reads them:
before and after the request goes async, withdrawn, failed, in a hurry, and late."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from durable_endpoints_server.settings import ServerSettings
from tests.durable_endpoints_server.routes.serving import served_in_a_thread
from tests.interop.clients import FOLDER, Node, Reading, commit, data, rollback


@pytest.fixture(scope="module")
def app(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application's URL."""
    path = tmp_path_factory.mktemp("server") / "server.db"
    settings = ServerSettings(dev=True, retry_interval=100)
    with served_in_a_thread(path, settings) as url:
        command = ["node", str(FOLDER / "streams.js"), url]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield process.stdout.readline().decode().strip()
            process.kill()


def redirected(reading: Reading) -> str:
    """Where the client went on."""
    _, second = reading.fetches
    return str(second["url"])


def test_a_stream_goes_on_after_the_switch_and_is_told_again(app: str, node: Node) -> None:
    reading = node.read(f"{app}/switches")
    before = [data({"early": 1}, "a"), commit("a")]
    after = [data("hé", "b"), data("llo", "b"), commit("b")]
    assert reading.calls == [*before, *after]
    assert reading.answer.status == 202
    assert reading.answer.headers["x-mine"] == "yes"
    assert reading.answer.json() == "héllo"
    late = node.read(redirected(reading))
    assert late.calls == after
    assert late.answer == reading.answer
    ids = [line for line in httpx.get(redirected(reading)).text.split("\n") if line[:2] == "id"]
    assert ids == [f"id: {n}" for n in range(1, 7)]


def test_failed_tries_are_rolled_back_on_both_sides_of_the_switch(
    app: str, node: Node, name: str
) -> None:
    reading = node.read(f"{app}/retries?name={name}")
    assert reading.calls == [
        data("partial", "a"),
        rollback("a"),
        data("partial", "a"),
        commit("a"),
        data("more", "b"),
        rollback("b"),
        data("more", "b"),
        commit("b"),
    ]
    assert reading.committed == ["partial", "more"]
    assert reading.answer.json() == "done"


def test_a_final_failure_reaches_the_client(app: str, node: Node, name: str) -> None:
    reading = node.read(f"{app}/fails?name={name}")
    assert reading.calls == [data("partial", "a"), rollback("a")] * 2
    assert (reading.answer.status, reading.answer.json()) == (500, "oh no")


def test_steps_in_a_hurry_stay_in_order(app: str, node: Node, name: str) -> None:
    reading = node.read(f"{app}/hurries?name={name}")
    steps = [f"step {n}" for n in range(8)]
    expected = [
        [data(f"{n} begins", step), data(f"{n} ends", step), commit(step)]
        for n, step in enumerate(steps)
    ]
    assert reading.calls[-24:] == [call for calls in expected for call in calls]
    assert reading.answer.json() == "done"
