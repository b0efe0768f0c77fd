"""The command line against a server: the same commands, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from starlette.testclient import TestClient

from durable_endpoints.protocol.ops import Sleep, StepDone, StepKind
from durable_endpoints.protocol.runs import Complete, NewRun
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints_server.app import create_app
from durable_endpoints_server.cli import main
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore

KEY = "signkey-prod-0123456789abcdef0123456789abcdef"
OLD_KEY = "fedcba9876543210fedcba9876543210"
EVENT_KEY = "events from the shop"
URL = "http://server:8288"


def step(name: str) -> StepId:
    return StepId(hash_name(name), name, 0)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A server with a run that is done and one that sleeps, which `httpx.request` reaches."""
    server = Server(
        ServerSettings(signing_keys=(KEY, OLD_KEY), event_keys=(EVENT_KEY,)), MemoryStore()
    )

    async def fill() -> None:
        done = server.host.register(NewRun("done", "GET /a", "v1", "GET", "/a", b"", app="shop"))
        done.record(StepDone(step("add"), StepKind.RUN, b"[1,2]"))
        await done.end(Complete(200, b"sealed", b""))
        asleep = server.host.register(NewRun("asleep", "GET /b", "", "GET", "/b", b""))
        asleep.record(Sleep(step("nap"), 3_600_000))
        await asleep.suspend()

    with TestClient(create_app(server)) as client:
        assert client.portal is not None
        client.portal.call(fill)

        def request(method: str, url: str, **options: Any) -> httpx.Response:
            del options["trust_env"]  # of a client, and not of a request
            assert url.startswith(URL)
            options.pop("timeout")
            return client.request(method, url.removeprefix(URL), **options)  # type: ignore[return-value]

        monkeypatch.setattr(httpx, "request", request)
        monkeypatch.setenv("DURABLE_ENDPOINTS_SIGNING_KEY", KEY)
        yield client


def call(*arguments: str, server: str = URL) -> Result:
    return CliRunner().invoke(main, [*arguments, "--server", server])


def test_runs_are_listed_and_shown_as_from_a_database(client: TestClient) -> None:
    listed = call("runs", "list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["RUN", "done", "asleep"]
    assert " in " in listed[2]
    assert [one["id"] for one in json.loads(call("runs", "list", "--json").stdout)] == [
        "done",
        "asleep",
    ]
    waiting = call("runs", "list", "--status", "waiting", "--function", "GET /b", "--limit", "5")
    assert [line.split()[0] for line in waiting.stdout.splitlines()] == ["RUN", "asleep"]
    page = call("runs", "show", "done").stdout
    assert "app         shop" in page
    assert "[1,2]" in page
    assert call("runs", "stream", "done").stdout == "It has streamed nothing.\n"
    assert call("requests").stdout == "No tracked requests.\n"


def test_a_run_is_cancelled_once(client: TestClient) -> None:
    assert call("runs", "cancel", "asleep").stdout == "asleep is cancelled now.\n"
    again = call("runs", "cancel", "asleep")
    assert (again.exit_code, "has ended already (cancelled)" in again.stderr) == (1, True)
    retried = call("runs", "retry", "done")
    assert (retried.exit_code, "only a parked run can be retried" in retried.stderr) == (1, True)


def test_an_event_is_sent_with_either_key(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = call("events", "send", "paid", '{"n": 1}', "--id", "first")
    assert sent.stdout == "first\n", sent.output
    monkeypatch.setenv("DURABLE_ENDPOINTS_SIGNING_KEY", "not the key of the server")
    monkeypatch.setenv("DURABLE_ENDPOINTS_EVENT_KEY", EVENT_KEY)
    assert call("events", "send", "paid", "--id", "second").stdout == "second\n"
    monkeypatch.setenv("DURABLE_ENDPOINTS_EVENT_KEY", "not/the key of the server")
    assert call("events", "send", "paid").exit_code == 1
    answer = client.get("/v1/events?name=paid", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert [event["id"] for event in answer["data"]] == ["second", "first"]


@pytest.mark.parametrize("run_id", ["nobody", "../../health", "a b", "ü"])
@pytest.mark.parametrize("command", ["show", "stream", "retry", "cancel"])
def test_an_unknown_run_is_an_error(client: TestClient, command: str, run_id: str) -> None:
    result = call("runs", command, run_id)
    assert result.exit_code == 1
    assert f"there is no run {run_id} in {URL}" in result.stderr


def test_the_fallback_key_is_shown_to_a_server_that_does_not_take_the_first(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_ENDPOINTS_SIGNING_KEY", "a new key of the operator")
    refused = call("runs", "list")
    assert refused.exit_code == 1
    assert "does not accept the signing key: set DURABLE_ENDPOINTS_SIGNING_KEY" in refused.stderr
    monkeypatch.setenv("DURABLE_ENDPOINTS_SIGNING_KEY_FALLBACK", OLD_KEY)
    assert call("runs", "list").exit_code == 0
    monkeypatch.delenv("DURABLE_ENDPOINTS_SIGNING_KEY")
    monkeypatch.delenv("DURABLE_ENDPOINTS_SIGNING_KEY_FALLBACK")
    assert "wants a signing key" in call("runs", "list").stderr


def test_what_cannot_be_reached_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = call("runs", "list", server="http://127.0.0.1:9")
    assert gone.exit_code == 1
    assert "http://127.0.0.1:9 cannot be reached" in gone.stderr
    for url in ("ftp://x", "localhost:8288"):
        assert "begins with http://" in call("runs", "list", server=url).stderr
    monkeypatch.setattr(httpx, "request", lambda *a, **k: httpx.Response(200, text="<html>"))
    assert "is no server of durable-endpoints" in call("runs", "list").stderr


def test_a_server_comes_before_a_database_in_the_environment_only(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_ENDPOINTS_SERVER_URL", URL)
    monkeypatch.setenv("DURABLE_ENDPOINTS_DATABASE", "/nowhere/at/all.db")
    listed = CliRunner().invoke(main, ["runs", "list"])
    assert listed.exit_code == 0, listed.output
    typed = CliRunner().invoke(main, ["runs", "list", "--database", "/nowhere.db"])
    assert "there is no database at /nowhere.db" in typed.stderr
    both = CliRunner().invoke(main, ["runs", "list", "--database", "x", "--server", URL])
    assert (both.exit_code, "exclude each other" in both.stderr) == (2, True)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("status=asleep", "there are running, waiting"),
        ("limit=0", "from 1 to"),
        ("limit=x", "from"),
    ],
)
def test_a_wrong_query_is_refused(client: TestClient, query: str, message: str) -> None:
    answer = client.get(f"/v1/durable/runs?{query}", headers={"Authorization": f"Bearer {KEY}"})
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
    assert message in answer.json()["error"]


def test_a_listing_of_a_server_goes_on_before_a_run(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_endpoints_server.routes.runs._PATIENCE", 0.0)
    stopped = call("runs", "list", "--function", "GET /b", "--limit", "1")
    assert stopped.stderr == "Older runs were not looked at: go on with --before done\n"
    gone_on = call("runs", "list", "--function", "GET /b", "--limit", "1", "--before", "done")
    assert gone_on.stdout.splitlines()[1].split()[0] == "asleep"


def test_every_route_wants_the_key(client: TestClient) -> None:
    for method, path in (
        ("GET", "/v1/durable/runs"),
        ("GET", "/v1/durable/runs/done"),
        ("GET", "/v1/durable/runs/done/stream"),
        ("POST", "/v1/durable/runs/done/retry"),
        ("POST", "/v1/durable/runs/asleep/cancel"),
        ("GET", "/v1/durable/requests"),
    ):
        assert client.request(method, path).status_code == 401, path
