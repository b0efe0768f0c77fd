"""The peers' processes, each with its stock settings, on loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from benchmarks.load import Request
from benchmarks.over_http import Variant
from benchmarks.peers.installing import HERE, Missing, node_modules, python
from benchmarks.servers import EVENT_KEY, PORT, SIGNING_KEY, Companion, Process, free_port

_CHUNKED = '{"value":44}\r\n0\r\n\r\n'


@contextmanager
def dbos(folder: Path) -> Iterator[Process]:
    """A FastAPI application with DBOS in its process, on SQLite."""
    program = [str(python("dbos")), "-m", "uvicorn", "--app-dir", str(HERE), "dbos_app:app"]
    options = ["--no-access-log", "--log-level", "warning", "--port", PORT]
    environment = {"PEER_DATABASE": str(folder / "dbos.db")}
    with Process("DBOS", [*program, *options], environment, folder / "dbos.log") as process:
        yield process


def dbos_variants(process: Process) -> list[Variant]:
    return [
        Variant(f"DBOS {kind}, SQLite", process.port, process.cpu_seconds, Request(path=path))
        for kind, path in (("async", "/run/async"), ("sync", "/run/sync"))
    ]


@contextmanager
def restate(folder: Path) -> Iterator[tuple[Process, Process]]:
    """Restate's server, whose port is that of its ingress, and the service that it calls."""
    found = list(node_modules().glob("node_modules/@restatedev/restate-server-*/bin/*"))
    if not found:
        raise Missing("npm has no binary of Restate's server for this machine")
    admin, own = free_port(), free_port()
    server = [str(found[0]), "--no-logo", "--base-dir", str(folder / "restate")]
    environment = {
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_BIND_PORT": str(own),
        "RESTATE_ADMIN__BIND_PORT": str(admin),
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_NODE_NAME": "benchmark",
    }
    program = ["/usr/bin/env", f"RESTATE_INGRESS__BIND_PORT={PORT}", *server]
    service = [str(python("restate")), "-m", "hypercorn", "restate_app:app"]
    with (
        Process("Restate", program, environment, folder / "restate.log") as ingress,
        Process(
            "Restate's service",
            [*service, "--bind", f"127.0.0.1:{PORT}"],
            {"PYTHONPATH": str(HERE)},
            folder / "restate-service.log",
        ) as called,
    ):
        _register(f"http://127.0.0.1:{admin}", called.url)
        yield ingress, called


def _register(admin: str, uri: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.post(f"{admin}/deployments", json={"uri": uri}, timeout=30).raise_for_status()
            return
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def restate_variants(ingress: Process, service: Process) -> list[Variant]:
    def cpu_seconds() -> float:
        return ingress.cpu_seconds() + service.cpu_seconds()

    request = Request(path="/bench/run", end='{"value": 44}')
    return [Variant("Restate", ingress.port, cpu_seconds, request)]


@contextmanager
def inngest(folder: Path) -> Iterator[list[Variant]]:
    """A durable endpoint of Inngest's SDK on our server, and its handler without durability."""
    program = ["node", str(node_modules() / "inngest_app.js"), PORT]
    with ExitStack() as stack:
        port = free_port()
        companion = Companion(folder, "inngest.db", f"http://127.0.0.1:{port}")
        stack.enter_context(companion)
        environment = {
            "INNGEST_BASE_URL": companion.url,
            "INNGEST_SIGNING_KEY": SIGNING_KEY,
            "INNGEST_EVENT_KEY": EVENT_KEY,
        }
        node = Process("node", program, environment, folder / "inngest.log", port)
        stack.enter_context(node)

        def cpu_seconds() -> float:
            return node.cpu_seconds() + companion.cpu_seconds()

        yield [
            Variant("bare node", node.port, node.cpu_seconds, Request(path="/bare")),
            Variant(
                "Inngest's SDK, our server",
                node.port,
                cpu_seconds,
                Request("GET", "/run", _CHUNKED),
            ),
        ]
