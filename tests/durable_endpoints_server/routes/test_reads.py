"""Runs and signals over Inngest's REST API, and its test harness's two questions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from durable_endpoints.ids import new_run_id
from durable_endpoints.protocol.events import SIGNAL
from durable_endpoints.protocol.failures import Failure
from durable_endpoints.protocol.messages import StoredResponse
from durable_endpoints.protocol.ops import Alternative, Sleep, StepKind, WaitForEvent
from durable_endpoints.protocol.runs import Complete, Fail, NewRun
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints_server.app import create_app
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.memory import MemoryStore

RUN = "query ($runId: String!) { run(runID: $runId) { status trace { status outputID } } }"
OUTPUT = """query ($traceID: String!) { runTraceSpanOutputByID(outputID: $traceID) { data } }"""
UNKNOWN = new_run_id()


class Site:
    """A server with runs that nobody executes."""

    def __init__(self, client: TestClient, server: Server) -> None:
        self.client, self.server = client, server

    def run(self, *ops: Any, app: str = "http://localhost:3000") -> str:
        new = NewRun(new_run_id(), "GET /x", "", "GET", "/x", b"", app=app)

        async def work() -> None:
            live: LiveRun = self.server.host.register(new)
            for op in ops:
                if isinstance(op, Complete | Fail):
                    await live.end(op)
                else:
                    live.record(op)
            if not any(isinstance(op, Complete | Fail) for op in ops):
                await live.suspend()

        assert self.client.portal is not None
        self.client.portal.call(work)
        return new.id

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def ask(self, query: str, run_id: str) -> Any:
        answer = self.client.post("/v0/gql", json={"query": query, "variables": {"id": run_id}})
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


@pytest.fixture
def site() -> Iterator[Site]:
    server = Server(ServerSettings(dev=True), MemoryStore())
    with TestClient(create_app(server)) as client:
        yield Site(client, server)


def step(name: str) -> StepId:
    return StepId(hash_name(name), name, 0)


def completed(body: bytes) -> Complete:
    return Complete(200, StoredResponse(200, [], body).pack())


FAILED = Fail("exception", Failure("Error", "boom").encode())


def test_how_a_run_stands_and_what_came_of_it(site: Site) -> None:
    sleeping = site.run(Sleep(step("s"), duration=60_000))
    told = site.get(f"/v1/runs/{sleeping}")
    assert (told["run_id"], told["status"], told["ended_at"]) == (sleeping, "Running", None)
    assert "output" not in told
    done = site.run(completed(b'{"a":1}'))
    ended = site.get(f"/v1/runs/{done}")
    assert (ended["status"], ended["output"]) == ("Completed", {"a": 1})
    assert ended["ended_at"].endswith("Z")
    assert ended["function_id"] == told["function_id"]
    failed = site.get(f"/v1/runs/{site.run(FAILED)}")
    assert failed["output"] == {"error": {"name": "Error", "message": "boom"}}


def test_the_response_of_our_own_sdk_is_sealed_and_not_told(site: Site) -> None:
    run_id = site.run(Complete(200, b"sealed"), app="shop")
    assert "output" not in site.get(f"/v1/runs/{run_id}")
    assert site.ask(OUTPUT, run_id) == {"runTraceSpanOutputByID": None}


def test_what_a_run_waits_for(site: Site) -> None:
    run_id = site.run(Sleep(step("b"), duration=60_000), Sleep(step("a"), duration=1_000))
    first, second = site.get(f"/v1/runs/{run_id}/jobs")
    assert (first["id"], first["kind"]) == (f"{run_id}:{hash_name('a')}", "sleep")
    assert first["at"] < second["at"]


def test_a_run_is_cancelled_once(site: Site) -> None:
    run_id = site.run(Sleep(step("s"), duration=60_000))
    assert site.client.delete(f"/v1/runs/{run_id}").status_code == 200
    assert site.get(f"/v1/runs/{run_id}")["status"] == "Cancelled"
    assert site.client.delete(f"/v1/runs/{run_id}").status_code == 409


def test_metadata_is_refused_and_not_swallowed(site: Site) -> None:
    answer = site.client.post(f"/v1/runs/{site.run()}/metadata", json={})
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported")


@pytest.mark.parametrize("path", ["", "/jobs"])
def test_an_unknown_run_is_not_found_and_what_is_no_id_is_refused(site: Site, path: str) -> None:
    missing = site.client.get(f"/v1/runs/{UNKNOWN}{path}")
    assert (missing.status_code, missing.json()["status"]) == (404, 404)
    assert "ULID" in site.client.get(f"/v1/runs/run-1{path}").json()["error"]


def test_a_signal_reaches_the_run_that_waits_for_it_once(site: Site) -> None:
    alternatives = (Alternative("", f"{SIGNAL}go"),)
    run_id = site.run(WaitForEvent(step("w"), StepKind.SIGNAL, alternatives, 60_000))
    send = {"signal": "go", "data": {"n": 1}}
    answer = site.client.post("/v1/signals", json=send)
    assert answer.json()["data"] == {"run_id": run_id}
    assert site.client.post("/v1/signals", json=send).status_code == 404
    for bad in ({}, [], {"signal": 7}, {"signal": ""}):
        assert site.client.post("/v1/signals", json=bad).status_code == 400


def test_the_test_harness_is_told_how_runs_end(site: Site) -> None:
    sleeping, failed = site.run(Sleep(step("s"), duration=60_000)), site.run(FAILED)
    done = site.run(completed(b'"x"'))
    assert site.ask(RUN, UNKNOWN) == {"run": None}
    assert site.ask(RUN, sleeping)["run"]["trace"]["status"] == "RUNNING"
    assert site.ask(RUN, failed)["run"]["trace"]["outputID"] == failed
    assert site.ask(RUN, done)["run"]["status"] == "COMPLETED"
    error = site.ask(OUTPUT, failed)["runTraceSpanOutputByID"]["error"]
    assert error == {"name": "Error", "message": "boom"}
    assert site.ask(OUTPUT, done)["runTraceSpanOutputByID"] == {"data": '"x"', "error": None}


def test_other_questions_are_refused(site: Site) -> None:
    for form in ({"query": "{ apps { id } }"}, {"query": RUN}, [], {"query": RUN, "variables": 1}):
        assert site.client.post("/v0/gql", json=form).status_code == 400


def test_a_server_tells_what_it_is(site: Site) -> None:
    assert site.client.get("/dev").json()["functions"] == []


def test_everything_asks_for_a_key() -> None:
    keys = ServerSettings(signing_keys=("ab12",))
    with TestClient(create_app(Server(keys, MemoryStore()))) as client:
        answers = [
            client.get(f"/v1/runs/{UNKNOWN}"),
            client.delete(f"/v1/runs/{UNKNOWN}"),
            client.get(f"/v1/runs/{UNKNOWN}/jobs"),
            client.post(f"/v1/runs/{UNKNOWN}/metadata"),
            client.post("/v1/signals"),
            client.post("/v0/gql"),
            client.get("/dev"),
            client.get("/openapi.json"),
        ]
    assert {answer.status_code for answer in answers} == {401}
