"""What can be seen to be wrong at the start is told then, once, and nothing else is."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.testclient import TestClient

from durable_endpoints import DurableEndpointsMiddleware, Hook, endpoint, endpoint_proxy
from durable_endpoints.application import _applications
from durable_endpoints.encryption import StepEncryption
from durable_endpoints.settings import SETTINGS, variable_of
from durable_endpoints.startup_checks import OF_SERVERS, check_encryption, check_environment
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server import settings as server_settings
from durable_endpoints_server.store.file_system import check_file_system


@pytest.fixture(autouse=True)
def alone(caplog: pytest.LogCaptureFixture) -> None:
    """No application of another test is left."""
    gc.collect()
    _applications.clear()
    caplog.set_level(logging.INFO, "durable_endpoints")


def told(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if (record.name, record.levelno) == ("durable_endpoints", level)
        and record.module != "link"  # which tells that there is a server
    ]


def start(app: FastAPI, lifespan: bool = True) -> None:
    app.add_middleware(DurableEndpointsMiddleware, engine=VirtualEngine())
    client = TestClient(app)
    if lifespan:
        with client:
            client.get("/nowhere")
    else:
        client.get("/nowhere")
        client.get("/nowhere")


def an_application(proxy: str = "/wait") -> FastAPI:
    app = FastAPI()
    app.get("/report")(endpoint(report))
    if proxy:
        app.mount(proxy, endpoint_proxy())
    return app


async def report() -> str:
    return "ok"


@endpoint
async def forgotten() -> str:
    return "ok"


@pytest.fixture
def not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests about other things."""
    monkeypatch.setattr(forgotten.__wrapped__, "__module__", "elsewhere")  # type: ignore[attr-defined]


@pytest.mark.parametrize("lifespan", [True, False])
def test_a_decorated_function_on_no_route(caplog: pytest.LogCaptureFixture, lifespan: bool) -> None:
    start(an_application(), lifespan)
    (warning,) = told(caplog)
    line = forgotten.__wrapped__.__code__.co_firstlineno  # type: ignore[attr-defined]
    assert f"forgotten ({__file__}:{line}) is decorated with @endpoint" in warning
    assert "on no route of this application: add its route, or include its router" in warning


def test_a_function_that_may_be_on_a_route_of_another_application(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = an_application()
    other.get("/forgotten")(forgotten)
    start(other)
    start(an_application())
    assert told(caplog) == []
    assert "forgotten" in told(caplog, logging.INFO)[0]


@pytest.mark.usefixtures("not_forgotten")
def test_an_application_without_mistakes_is_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    start(an_application())
    assert told(caplog) == told(caplog, logging.INFO) == []


@pytest.mark.usefixtures("not_forgotten")
def test_a_router_that_is_not_included_has_no_routes(caplog: pytest.LogCaptureFixture) -> None:
    app, router = an_application(), APIRouter()

    @router.get("/local")
    @endpoint
    async def local() -> str:
        return "made by a function, of which there may be many"

    start(app)
    assert told(caplog) == []


@pytest.mark.usefixtures("not_forgotten")
def test_no_proxy_is_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    start(an_application(proxy=""))
    assert told(caplog) == []
    assert "clients wait at /.durable/wait" in told(caplog, logging.INFO)[0]


@pytest.mark.usefixtures("not_forgotten")
def test_a_proxy_that_was_not_called(caplog: pytest.LogCaptureFixture) -> None:
    app = an_application(proxy="")
    app.mount("/wait", endpoint_proxy)  # type: ignore[arg-type]
    start(app)
    assert 'write app.mount("/wait", endpoint_proxy())' in told(caplog)[0]


@pytest.mark.usefixtures("not_forgotten")
def test_a_proxy_that_nobody_can_find(caplog: pytest.LogCaptureFixture) -> None:
    start(an_application(proxy="/{tenant}/wait"))
    assert "mounted at /{tenant}/wait" in told(caplog)[0]
    assert "Mount it at a fixed path" in told(caplog)[0]


@pytest.mark.usefixtures("not_forgotten")
@pytest.mark.parametrize(
    ("url", "is_told"),
    [
        ("/waiting", True),
        ("/wait", False),
        ("/wait?lang=en", False),
        ("/report", False),
        ("/.durable/wait", False),
        ("https://elsewhere.example/wait", False),
        (lambda run_id, token: "/anywhere", False),
    ],
)
def test_a_redirect_that_leads_nowhere(
    caplog: pytest.LogCaptureFixture, url: Any, is_told: bool
) -> None:
    app = an_application()
    app.get("/other")(endpoint(async_redirect_url=url)(report))
    start(app)
    warnings = told(caplog)
    assert len(warnings) == is_told
    if is_told:
        assert 'app.mount("/waiting", endpoint_proxy())' in warnings[0]


def test_a_variable_with_a_typing_error(caplog: pytest.LogCaptureFixture) -> None:
    check_environment(
        {
            "DURABLE_ENDPOINTS_DATABSE": "x.db",
            "DURABLE_ENDPOINTS_DATABASE": "y.db",
            "DURABLE_ENDPOINTS_SERVICE_HOST": "10.0.0.1",  # Kubernetes names a service so
        }
    )
    (warning,) = told(caplog)
    assert "DURABLE_ENDPOINTS_DATABSE is no setting" in warning
    assert "did you mean DURABLE_ENDPOINTS_DATABASE?" in warning


@pytest.mark.parametrize("name", ["DURABLE_ENDPOINT_DATABASE", "durable_endpoints_database"])
def test_a_variable_that_begins_wrong(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check_environment({name: "x.db"})
    assert f"{name} is no setting: did you mean DURABLE_ENDPOINTS_DATABASE?" in told(caplog)[0]


def test_a_variable_that_is_an_option(caplog: pytest.LogCaptureFixture) -> None:
    check_environment({"DURABLE_ENDPOINTS_RETRIES": "7"})
    assert "add_middleware(DurableEndpointsMiddleware, retries=…)" in told(caplog)[0]


def test_a_key_that_nothing_encrypts_with(caplog: pytest.LogCaptureFixture) -> None:
    key = "6d5b1c0f0e2a4c7e9b3f7a1d5e8c2b40"
    environ = {"DURABLE_ENDPOINTS_ENCRYPTION_KEY": key}
    check_environment(environ)
    check_encryption([StepEncryption(key)], environ)
    assert not told(caplog)
    check_encryption([Hook()], environ)
    (warning,) = told(caplog)
    assert "stored as they are" in warning
    assert "hooks=[StepEncryption()]" in warning


# File systems

MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
30 22 0:40 / /srv rw,relatime shared:9 - nfs4 server:/srv rw,vers=4.2
31 30 254:1 / /srv/local rw - ext4 /dev/vdb rw
32 22 0:41 / /mnt/my\040share rw - cifs //server/share rw
33 22 0:42 / /mnt/ssh rw - fuse.sshfs me@server:/ rw
34 22 0:43 / /run/state rw - tmpfs tmpfs rw
35 22 0:44 / /mnt/twice rw - nfs server:/old rw
36 22 254:2 / /mnt/twice rw - xfs /dev/vdc rw
a line that is no mount
"""


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/srv/runs.db", "network file system (nfs4 at /srv)"),
        ("/srv/localhost/runs.db", "network file system (nfs4 at /srv)"),
        ("/srv/local/runs.db", ""),
        ("/mnt/my share/runs.db", "network file system (cifs at /mnt/my share)"),
        ("/mnt/ssh/deep/runs.db", "network file system (fuse.sshfs at /mnt/ssh)"),
        ("/mnt/twice/runs.db", ""),
        ("/run/state/runs.db", "is in memory (tmpfs at /run/state)"),
        ("/var/lib/runs.db", ""),
    ],
)
def test_a_file_system_that_loses_runs(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, path: str, says: str
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    check_file_system(Path(path), mounts, in_container=[])
    warnings = told(caplog)
    assert len(warnings) == bool(says)
    if says:
        assert says in warnings[0]
        assert "name a database on a disk of this machine" in warnings[0]


@pytest.mark.parametrize("in_container", [True, False])
def test_a_containers_own_file_system(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, in_container: bool
) -> None:
    mounts, mark = tmp_path / "mountinfo", tmp_path / "dockerenv"
    mounts.write_text(
        "1 0 0:50 / / rw - overlay overlay rw\n2 1 8:1 /v /data rw - ext4 /dev/sda1 rw\n"
    )
    if in_container:
        mark.touch()
    check_file_system(Path("/data/runs.db"), mounts, [mark])
    assert told(caplog) == []
    check_file_system(Path("/app/.durable/endpoints.db"), mounts, [mark])
    assert len(told(caplog)) == in_container
    if in_container:
        assert "mount a volume" in told(caplog)[0]


def test_a_machine_without_mountinfo(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    check_file_system(Path("/srv/runs.db"), tmp_path / "none")
    assert told(caplog) == []


def test_the_middleware_added_twice(caplog: pytest.LogCaptureFixture) -> None:
    app = an_application()
    app.add_middleware(DurableEndpointsMiddleware, engine=VirtualEngine())
    start(app)
    assert len([text for text in told(caplog) if "added twice" in text]) == 1


def test_variables_of_the_server_are_no_typing_errors(caplog: pytest.LogCaptureFixture) -> None:
    of_servers = {setting.variable for setting in server_settings.SETTINGS}
    check_environment(dict.fromkeys(of_servers, "1"))
    assert caplog.messages == []
    ours = {variable_of(name) for name in SETTINGS}
    assert {*OF_SERVERS} == (of_servers | {"DURABLE_ENDPOINTS_CONFIG"}) - ours
