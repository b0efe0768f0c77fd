"""The dispatcher role: one holder at a time, by name, until it ends however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from durable_endpoints import DurableEndpointsMiddleware
from durable_endpoints.protocol.errors import StorageError
from durable_endpoints_server.store import ownership
from durable_endpoints_server.store.ownership import DispatcherRole

HOLD = """
import sys, time
from pathlib import Path
from durable_endpoints_server.store.ownership import DispatcherRole
role = DispatcherRole(Path(sys.argv[1]))
role.acquire()
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holder(database: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the role until it is killed."""
    command = [sys.executable, "-c", HOLD, str(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_role_is_refused_by_the_name_of_its_owner(tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    with holder(database) as process:
        began = time.monotonic()
        with pytest.raises(StorageError) as refusal:
            DispatcherRole(database).acquire(patience=0.2)
        assert 0.2 <= time.monotonic() - began < 5
    message = str(refusal.value)
    assert f"{database} is served by another process (pid {process.pid} on " in message
    assert "single worker" in message
    assert "DURABLE_ENDPOINTS_DATABASE" in message


def test_who_waits_says_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = tmp_path / "runs.db"
    with holder(database) as process, pytest.raises(StorageError):
        DispatcherRole(database).acquire(patience=1.2)
    assert f"served by another process (pid {process.pid} on " in caplog.text
    assert "waiting 1.2 s for that one to end" in caplog.text


def test_an_application_waits_longer_than_the_one_before_it_may_drain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "GRACE", 1.0)
    database = tmp_path / "runs.db"
    app = Starlette()
    app.add_middleware(
        DurableEndpointsMiddleware, database=f"sqlite:///{database}", drain_timeout="250ms"
    )
    with holder(database), pytest.raises(StorageError), TestClient(app):
        pass
    assert "waiting 1.25 s for that one to end" in caplog.text


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    database = tmp_path / "runs.db"
    role = DispatcherRole(database)
    with holder(database) as process:
        assert role.is_held_elsewhere
        process.kill()
        role.acquire(patience=5)
    note = (tmp_path / "runs.db.owner").read_text()
    assert note.startswith(f"pid {os.getpid()} on ")
    role.release()
    assert not DispatcherRole(database).is_held_elsewhere


def test_who_waits_gets_the_role_when_it_is_let_go(tmp_path: Path) -> None:
    first, second = (DispatcherRole(tmp_path / "runs.db") for _ in range(2))
    first.acquire()
    with pytest.raises(StorageError):
        second.acquire(patience=0)
    first.release()
    second.acquire(patience=0)
    second.release()


def test_asking_who_holds_it_takes_nothing_away(tmp_path: Path) -> None:
    role, asking = DispatcherRole(tmp_path / "runs.db"), DispatcherRole(tmp_path / "runs.db")
    role.acquire()
    for _ in range(3):
        assert asking.is_held_elsewhere
    role.release()
    for _ in range(3):
        assert not asking.is_held_elsewhere
    role.acquire(patience=0)
    role.release()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="lock cannot be taken"):
        DispatcherRole(tmp_path / "file" / "runs.db").acquire(patience=0)
