"""A server in a process of its own: how it starts, what it says, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from durable_endpoints.protocol.errors import ConfigurationError
from durable_endpoints_server.cli import main
from durable_endpoints_server.listening import listen, port_of
from durable_endpoints_server.store import ownership
from durable_endpoints_server.store.opening import open_database

KEY = "signkey-test-0123456789abcdef0123456789abcdef"


@contextmanager
def running(folder: Path, *words: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "durable_endpoints_server", *words, "--port", "0"],
        cwd=folder,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().split("serves ")[1].strip()


def test_a_server_says_where_it_is_answers_and_stops_at_sigterm(tmp_path: Path) -> None:
    file = tmp_path / "durable.toml"
    file.write_text('log_format = "json"\naccess_log = true\n')
    environ = {"DURABLE_ENDPOINTS_SIGNING_KEY": KEY}
    with running(tmp_path, "serve", "--config", str(file), **environ) as process:
        url = url_of(process)
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert httpx.get(f"{url}/ready").json() == {"status": "ready"}
        assert httpx.get(f"{url}/v1/durable/runs").status_code == 401
        environ["DURABLE_ENDPOINTS_SERVER_URL"] = url
        listed = CliRunner().invoke(main, ["runs", "list"], env=environ)
        assert listed.stdout == "No runs.\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        said, logged = process.stdout.read(), process.stderr.read()
    assert str(tmp_path / ".durable" / "server.db") in said
    assert f"DURABLE_ENDPOINTS_SERVER_URL={url}" in said
    assert KEY not in said + logged
    lines = [json.loads(line) for line in logged.splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/health", 200),
        ("/ready", 200),
        ("/v1/durable/runs", 401),
        ("/v1/durable/runs", 200),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve"], "export DURABLE_ENDPOINTS_SIGNING_KEY=$(openssl rand -hex 32)"),
        (["dev", "--host", "0.0.0.0"], "durable-endpoints serve"),
        (["dev", "--database", "postgresql://x/y"], "SQLite only"),
        (["dev", "--config", "none.toml"], "none.toml cannot be read"),
    ],
)
def test_what_cannot_start_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_another_process_serves_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "GRACE", 0.0)
    path = tmp_path / "server.db"
    database = open_database(path, "full", 0)
    try:
        words = ["dev", "--database", str(path), "--drain-timeout", "0s", "--port", "0"]
        result = CliRunner().invoke(main, words)
    finally:
        database.close()
    assert result.exit_code == 1
    assert "is served by another process (pid" in result.stderr


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = CliRunner().invoke(main, ["dev", "--database", str(tmp_path / "x" / "server.db")])
    assert (result.exit_code, "cannot be made" in result.stderr) == (1, True)


def test_a_port_that_is_taken_is_an_error() -> None:
    (taken,) = listen("127.0.0.1", 0)
    taken.listen()
    try:
        with pytest.raises(ConfigurationError, match=r"another program has this port.*--port"):
            listen("127.0.0.1", port_of(taken))
    finally:
        taken.close()


@pytest.mark.parametrize(
    ("host", "message"),
    [("192.0.2.1", "no such address.*--host"), ("no such host", "--host and --port")],
)
def test_an_address_of_another_machine_is_an_error(host: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        listen(host, 0)


def test_a_name_with_several_addresses_has_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    sockets = listen("app.localhost", 0)
    try:
        assert len({port_of(one) for one in sockets}) == 1
        assert len(sockets) == 2
    finally:
        for one in sockets:
            one.close()
