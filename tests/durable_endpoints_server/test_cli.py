"""The command line, beside an application that serves the file and without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apsw
import pytest
from click.testing import CliRunner, Result
from fastapi import FastAPI
from starlette.testclient import TestClient
from ulid import ULID

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, step, stream
from durable_endpoints_server.cli import main
from durable_endpoints_server.store.migrations import available
from tests.durable_endpoints_server.helpers import park


def application(database: Path) -> FastAPI:
    app = FastAPI()
    app.add_middleware(
        DurableEndpointsMiddleware, database=str(database), track_all_endpoints=True, version="v7"
    )
    app.mount("/wait", endpoint_proxy())

    def fail() -> None:
        raise ValueError("no ink")

    def plus_one(n: int) -> int:
        stream.push({"adding to": n})
        stream.push("…")
        step.progress(n, 3, "adding")
        step.log.warning("it is\x1b[2J odd", n=n)
        return n + 1

    @app.get("/sum/{n}")
    @endpoint
    async def add(n: int) -> int:
        return await step.run("add", plus_one, n)

    @app.get("/broken")
    @endpoint(retries=0)
    async def broken() -> None:
        await step.run("print", fail)

    @app.get("/hear/{name}")
    @endpoint
    async def hear(name: str) -> Any:
        await step.run("listen", lambda: "x" * 200)
        event = await step.wait_for_event(
            "hear", event="said", match={"data.to": name}, timeout="1h"
        )
        return event and event.data

    @app.get("/plain")
    async def plain() -> str:
        return "plain"

    return app


class Runs:
    """A file with a run of each kind, and their ids."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "endpoints.db"
        self.locations: dict[str, str] = {}
        with self.serve() as client:
            self.done = client.get("/sum/1").headers["durable-run-id"]
            self.failed = client.get("/broken").headers["durable-run-id"]
            self.waiting = self._start(client, "/hear/ada")
            self.second = self._start(client, "/hear/bob")
            client.get("/plain")

    def serve(self) -> TestClient:
        return TestClient(
            application(self.database), follow_redirects=False, raise_server_exceptions=False
        )

    def _start(self, client: TestClient, path: str) -> str:
        response = client.get(path)
        run_id = response.headers["durable-run-id"]
        self.locations[run_id] = response.headers["location"]
        return str(run_id)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """For tests that only look."""
    return Runs(tmp_path_factory.mktemp("shared"))


def call(*arguments: str, database: Path | str | None = None) -> Result:
    """The command line in this process."""
    options = ["--database", str(database)] if database is not None else []
    return CliRunner().invoke(main, [*arguments, *options])


def json_of(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def in_a_process(*arguments: str | bytes, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "durable_endpoints_server", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


# Help


def test_the_module_and_the_script_are_one_program() -> None:
    shown = in_a_process("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Usage: durable-endpoints " in shown.stdout
    for command in ("runs", "events", "requests", "demo"):
        assert command in shown.stdout
    script = Path(sys.executable).with_name("durable-endpoints")
    assert subprocess.run([script, "--help"], capture_output=True, text=True).stdout == shown.stdout


def test_every_command_explains_itself() -> None:
    for words in (["runs"], ["events"], ["runs", "list"], ["runs", "show"], ["runs", "retry"]):
        shown = call(*words, "-h")
        assert shown.exit_code == 0
        assert f"main {' '.join(words)}" in shown.output


def test_the_version_is_the_distributions() -> None:
    assert version("durable-endpoints") in call("--version").output


# No file, another file


@pytest.mark.parametrize(
    "words",
    [
        ["runs", "list"],
        ["runs", "show", "x"],
        ["runs", "retry", "x"],
        ["runs", "cancel", "x"],
        ["events", "send", "x"],
        ["requests"],
    ],
    ids=" ".join,
)
def test_without_a_database_every_command_names_the_path(tmp_path: Path, words: list[str]) -> None:
    database = tmp_path / "nowhere" / "endpoints.db"
    result = call(*words, database=database)
    assert result.exit_code == 1
    assert f"there is no database at {database}" in result.stderr
    assert "--database" in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [("postgresql://localhost/x", "SQLite only"), (":memory:", "needs a file")],
)
def test_a_database_that_is_no_file_is_an_error(setting: str, message: str) -> None:
    result = call("runs", "list", database=setting)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize("words", [["runs", "list"], ["events", "send", "x"]], ids=" ".join)
def test_a_file_of_another_program_is_an_error(tmp_path: Path, words: list[str]) -> None:
    strange = tmp_path / "strange.db"
    connection = apsw.Connection(str(strange))
    connection.execute("create table notes (text)")
    connection.close()
    text = tmp_path / "text.db"
    text.write_text("not a database, but a longer text\n" * 100)
    for path, message in (
        (strange, "not a database of durable-endpoints"),
        (text, "not a SQLite database"),
    ):
        result = call(*words, database=path)
        assert result.exit_code == 1
        assert str(path) in result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.output


def test_a_database_of_an_older_version_says_so(tmp_path: Path) -> None:
    database = tmp_path / "endpoints.db"
    connection = apsw.Connection(str(database))
    for migration in available("sqlite")[:2]:
        connection.execute(migration.sql)
    connection.close()
    result = call("runs", "list", database=database)
    assert result.exit_code == 1
    assert "another version of durable-endpoints wrote it" in result.stderr


def test_the_database_comes_from_the_environment_too(
    shared: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_ENDPOINTS_DATABASE", f"sqlite:///{shared.database}")
    assert shared.done in call("runs", "list").output


# runs list


def test_an_empty_database_says_so(tmp_path: Path) -> None:
    database = tmp_path / "endpoints.db"
    with TestClient(application(database)):
        pass
    assert call("runs", "list", database=database).stdout == "No runs.\n"
    assert json_of(call("runs", "list", "--json", database=database)) == []


def test_runs_are_listed_newest_first(shared: Runs) -> None:
    result = call("runs", "list", database=shared.database)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["RUN", "STATUS", "CODE", "ENDPOINT", "BEGAN", "NEXT"]
    assert [line.split()[0] for line in lines[1:]] == [
        shared.second,
        shared.waiting,
        shared.failed,
        shared.done,
    ]
    assert lines[1].split()[1:4] == ["waiting", "GET", "/hear/{name}"]
    assert " in " in lines[1]  # the deadline of the wait
    assert "failed (exception)" in lines[3]
    assert " 500 " in lines[3]
    assert lines[4].split()[1:3] == ["completed", "200"]


def test_a_listing_can_be_filtered(shared: Runs) -> None:
    def ids(*options: str) -> list[str]:
        listed = json_of(call("runs", "list", "--json", *options, database=shared.database))
        return [line["id"] for line in listed]

    assert ids("--status", "completed") == [shared.done]
    assert ids("--status", "completed", "--status", "failed") == [shared.failed, shared.done]
    assert ids("--status", "parked") == []
    assert ids("--function", "GET /hear/{name}") == [shared.second, shared.waiting]
    assert ids("--function", "GET /hear/{name}", "--limit", "1") == [shared.second]
    assert ids("--function", "GET /hear") == []
    assert ids("--function", "GET /sum/{n}", "--status", "waiting") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--status", "asleep"], "'running', 'waiting', 'ready', 'parked'"),
        (["--limit", "0"], "1<=x<=10000"),
        (["--limit", "many"], "not a valid integer"),
    ],
)
def test_a_wrong_option_says_what_is_right(shared: Runs, options: list[str], message: str) -> None:
    result = call("runs", "list", *options, database=shared.database)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_listing_goes_on_before_a_run(shared: Runs) -> None:
    listed = call("runs", "list", "--before", shared.waiting, database=shared.database)
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [
        shared.failed,
        shared.done,
    ]
    assert listed.stderr == ""


def test_a_listing_that_stops_looking_says_how_to_go_on(
    shared: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_endpoints_server.cli.database_place._PATIENCE", 0.0)
    options = ["--function", "GET /sum/{n}", "--limit", "2"]
    stopped = call("runs", "list", *options, database=shared.database)
    assert stopped.stdout == "No runs.\n"
    assert f"go on with --before {shared.waiting}" in stopped.stderr
    gone_on = call("runs", "list", *options, "--before", shared.waiting, database=shared.database)
    assert [line.split()[0] for line in gone_on.stdout.splitlines()[1:]] == [shared.done]


def test_a_listing_as_json(shared: Runs) -> None:
    line = json_of(call("runs", "list", "--json", "--limit", "1", database=shared.database))[0]
    assert line["id"] == shared.second
    assert line["status"] == "waiting"
    assert line["method"] == "GET"
    assert line["path"] == "/hear/bob"
    assert line["status_code"] is None
    assert line["ended_at"] is None
    assert line["next_due"] > line["began_at"]
    assert line["began_at"].endswith("Z")


# runs show


def test_a_run_is_shown_with_its_steps(shared: Runs) -> None:
    result = call("runs", "show", shared.done, database=shared.database)
    assert result.stdout.startswith(f"{shared.done}  GET /sum/{{n}}\n  GET /sum/1\n")
    assert "answered    200" in result.stdout
    assert "progress    1 of 3: adding" in result.stdout
    assert "version     v7" in result.stdout
    step_line = next(line for line in result.stdout.splitlines() if line.startswith("add "))
    assert step_line.split()[:4] == ["add", "run", "done", "1"]
    assert step_line.split()[-1] == "2"


def test_a_stream_is_shown_chunk_by_chunk(shared: Runs) -> None:
    lines = json_of(call("runs", "stream", shared.done, "--json", database=shared.database))
    assert [(line["position"], line["event"], line["step"]) for line in lines] == [
        (1, "data", "add"),
        (2, "data", "add"),
        (3, "progress", "add"),
        (4, "log", "add"),
        (5, "commit", "add"),
    ]
    assert [line["data"] for line in lines[:3]] == [
        {"adding to": 1},
        "…",
        {"current": 1, "total": 3, "message": "adding"},
    ]
    shown = call("runs", "stream", shared.done, database=shared.database).stdout.splitlines()
    assert shown[0].split() == ["POSITION", "EVENT", "STEP", "TRY", "DATA"]
    assert shown[1].split() == ["1", "data", "add", "1", '{"adding', 'to":1}']
    assert shown[3].endswith("1 of 3: adding")
    assert shown[4].endswith('warning: it is\\u001b[2J odd {"n":1}')
    assert (
        "streamed nothing"
        in call("runs", "stream", shared.waiting, database=shared.database).stdout
    )


def test_a_failed_run_is_shown_with_its_errors(shared: Runs) -> None:
    page = call("runs", "show", shared.failed, database=shared.database).stdout
    assert "status      failed (exception)" in page
    assert "answered    500" in page
    assert "FAILED STEP" in page
    assert "ValueError: no ink" in page
    full = json_of(call("runs", "show", shared.failed, "--json", database=shared.database))
    assert [(a["step"], a["attempt"], a["error"]) for a in full["attempts"]] == [
        ("print", 1, "ValueError: no ink")
    ]
    assert "no ink" in full["error"]


def test_a_waiting_run_is_shown_with_what_it_waits_for(shared: Runs) -> None:
    full = json_of(call("runs", "show", shared.waiting, "--json", database=shared.database))
    assert full["status"] == "waiting"
    assert full["waits"] == [{"step": "hear", "event": "said"}]
    assert full["version"] == "v7"
    page = call("runs", "show", shared.waiting, database=shared.database).stdout.splitlines()
    assert [line.split() for line in page[-2:]] == [["WAITING", "STEP", "FOR"], ["hear", "said"]]
    (listen, hear) = full["steps"]
    assert (listen["state"], hear["state"]) == ("done", "pending")
    assert len(listen["value"]) == 60  # a preview
    assert listen["value"].endswith("…")


def test_a_run_shows_neither_request_nor_response(tmp_path: Path) -> None:
    database = tmp_path / "endpoints.db"
    with TestClient(application(database)) as client:
        headers = {"authorization": "Bearer s3cr3t"}
        run_id = client.get("/sum/41", headers=headers).headers["durable-run-id"]
    for options in ([], ["--json"]):
        page = call("runs", "show", run_id, *options, database=database).output
        assert "s3cr3t" not in page
        assert "authorization" not in page.lower()


@pytest.mark.parametrize("command", ["show", "stream", "retry", "cancel"])
@pytest.mark.parametrize("run_id", [str(ULID.from_int(7)), "no such thing", "ü✓", "' or 1=1 --"])
def test_an_unknown_run_is_an_error(shared: Runs, command: str, run_id: str) -> None:
    result = call("runs", command, run_id, database=shared.database)
    assert result.exit_code == 1
    assert f"there is no run {run_id}" in result.stderr
    assert result.stdout == ""


# runs retry, runs cancel


@pytest.mark.parametrize("which", ["done", "failed", "waiting"])
def test_only_a_parked_run_can_be_retried(shared: Runs, which: str) -> None:
    run_id = getattr(shared, which)
    result = call("runs", "retry", run_id, database=shared.database)
    assert result.exit_code == 1
    assert "only a parked run can be retried" in result.stderr


@pytest.mark.parametrize(("which", "label"), [("done", "completed"), ("failed", "failed")])
def test_a_run_that_has_ended_cannot_be_cancelled(shared: Runs, which: str, label: str) -> None:
    result = call("runs", "cancel", getattr(shared, which), database=shared.database)
    assert result.exit_code == 1
    assert f"has ended already ({label})" in result.stderr


def test_a_cancellation_waits_for_the_next_application(runs: Runs) -> None:
    result = call("runs", "cancel", runs.waiting, database=runs.database)
    assert result.exit_code == 0
    assert "No application serves" in result.stdout
    assert status_of(runs, runs.waiting) == "waiting"
    with runs.serve() as client:
        answer = client.get(runs.locations[runs.waiting])
        assert (answer.status_code, answer.json()["error"]) == (409, "cancelled")
    assert status_of(runs, runs.waiting) == "cancelled"
    assert status_of(runs, runs.second) == "waiting"


def test_a_cancellation_is_carried_out_by_the_application(runs: Runs) -> None:
    with runs.serve() as client:
        result = call("runs", "cancel", runs.waiting, database=runs.database)
        assert result.stdout == f"{runs.waiting} is cancelled now.\n"
        assert client.get(runs.locations[runs.waiting]).status_code == 409
        again = call("runs", "cancel", runs.waiting, database=runs.database)
        assert again.exit_code == 1
        assert "has ended already (cancelled)" in again.stderr


def test_a_parked_run_is_retried_by_the_application(runs: Runs) -> None:
    park(runs.database, runs.waiting)
    with runs.serve() as client:
        location = runs.locations[runs.waiting]
        answer = client.get(location)
        assert (answer.status_code, answer.json()["error"]) == (503, "parked")
        listed = call("runs", "list", "--status", "parked", database=runs.database).stdout
        assert "parked (interrupted_too_often)" in listed
        result = call("runs", "retry", runs.waiting, database=runs.database)
        assert result.exit_code == 0
        assert f"{runs.waiting} is " in result.stdout
        assert "parked" not in result.stdout
        wait_until_waiting(runs, runs.waiting)
        call("events", "send", "said", '{"to": "ada"}', database=runs.database)
        assert client.get(location).json() == {"to": "ada"}
    assert status_of(runs, runs.waiting) == "completed"


def test_a_retry_waits_for_the_next_application(runs: Runs) -> None:
    park(runs.database, runs.second)
    result = call("runs", "retry", runs.second, database=runs.database)
    assert "It will retry the run when one starts." in result.stdout
    assert status_of(runs, runs.second) == "parked"
    with runs.serve() as client:
        wait_until_waiting(runs, runs.second)
        call("events", "send", "said", '{"to": "bob", "n": 2}', database=runs.database)
        assert client.get(runs.locations[runs.second]).json() == {"to": "bob", "n": 2}


def test_a_parked_run_can_be_cancelled(runs: Runs) -> None:
    park(runs.database, runs.second)
    with runs.serve() as client:
        result = call("runs", "cancel", runs.second, database=runs.database)
        assert result.stdout == f"{runs.second} is cancelled now.\n"
        assert client.get(runs.locations[runs.second]).status_code == 409


def status_of(runs: Runs, run_id: str) -> str:
    full = json_of(call("runs", "show", run_id, "--json", database=runs.database))
    return str(full["status"])


def wait_until_waiting(runs: Runs, run_id: str) -> None:
    deadline = time.monotonic() + 10
    while status_of(runs, run_id) != "waiting":
        assert time.monotonic() < deadline
        time.sleep(0.02)


# events send


def test_an_event_reaches_the_runs_of_an_application(runs: Runs) -> None:
    with runs.serve() as client:
        result = call("events", "send", "said", '{"to": "ada", "n": [1]}', database=runs.database)
        assert result.exit_code == 0
        assert len(result.stdout.strip()) == 26  # the id it was given
        assert client.get(runs.locations[runs.waiting]).json() == {"to": "ada", "n": [1]}


def test_an_event_id_counts_once(runs: Runs) -> None:
    for n in range(2):
        data = json.dumps({"to": "ada", "n": n})
        result = call("events", "send", "said", data, "--id", "once", database=runs.database)
        assert result.stdout == "once\n"
    with runs.serve() as client:
        assert client.get(runs.locations[runs.waiting]).json() == {"to": "ada", "n": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["said", "{to: ada}"], "not JSON"),
        (["said", '{"n": NaN}'], "not JSON"),
        (["said", ""], "not JSON"),
        ([""], "printable text of 1 to 512 letters"),
        (["x" * 513], "printable text of 1 to 512 letters"),
        (["line\nbreak"], "printable text of 1 to 512 letters"),
    ],
)
def test_what_is_no_event_is_not_sent(shared: Runs, arguments: list[str], message: str) -> None:
    result = call("events", "send", *arguments, database=shared.database)
    assert result.exit_code == 1
    assert message in result.stderr
    connection = apsw.Connection(str(shared.database))
    try:
        assert connection.execute("select count(*) from inbox").fetchall() == [(0,)]
    finally:
        connection.close()


# requests


def test_tracked_requests_are_listed_newest_first(shared: Runs) -> None:
    found = json_of(call("requests", "--json", database=shared.database))
    assert [(line["method"], line["route"], line["status"]) for line in found] == [
        ("GET", "/plain", 200),
        ("GET", "/hear/{name}", 303),
        ("GET", "/hear/{name}", 303),
        ("GET", "/broken", 500),
        ("GET", "/sum/{n}", 200),
    ]
    assert [line["run_id"] for line in found] == [
        None,
        shared.second,
        shared.waiting,
        shared.failed,
        shared.done,
    ]
    table = call("requests", "--limit", "2", database=shared.database).stdout.splitlines()
    assert table[0].split() == ["AT", "METHOD", "ROUTE", "CODE", "TOOK", "RUN"]
    assert len(table) == 3
    assert "/plain" in table[1]
    assert table[2].endswith(shared.second)


def test_an_application_that_tracks_nothing_has_no_requests(tmp_path: Path) -> None:
    database = tmp_path / "endpoints.db"
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, database=str(database))
    with TestClient(app) as client:
        client.get("/nowhere")
    assert call("requests", database=database).stdout == "No tracked requests.\n"
    assert json_of(call("requests", "--json", database=database)) == []


# In a process of its own


def test_what_is_piped_has_no_colours(shared: Runs) -> None:
    database = str(shared.database)
    listed = in_a_process("runs", "list", DURABLE_ENDPOINTS_DATABASE=database)
    assert shared.done in listed.stdout
    assert "\x1b" not in listed.stdout
    failed = in_a_process("runs", "show", "x", DURABLE_ENDPOINTS_DATABASE=database)
    assert failed.returncode == 1
    assert failed.stderr == f"Error: there is no run x in {database}\n"
    assert failed.stdout == ""


def test_a_process_sends_an_event_while_the_application_holds_the_file(runs: Runs) -> None:
    with runs.serve() as client:
        database = str(runs.database)
        sent = in_a_process(
            "events", "send", "said", '{"to": "ada"}', DURABLE_ENDPOINTS_DATABASE=database
        )
        assert (sent.returncode, sent.stderr) == (0, "")
        assert client.get(runs.locations[runs.waiting]).json() == {"to": "ada"}


def test_looking_changes_nothing(shared: Runs) -> None:
    before = shared.database.read_bytes()
    for words in (["runs", "list"], ["runs", "show", shared.done], ["requests"]):
        assert call(*words, database=shared.database).exit_code == 0
    assert shared.database.read_bytes() == before
