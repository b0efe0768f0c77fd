"""Real server processes for tests: started, asked, killed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType

import anyio
import httpx

from tests.chaos.forking import ForkedProcess, fork

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port that stays free while a server is away: not one of those that the system gives to
    clients (Linux: from 32768 on), and one of so many that no other test takes the same."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Server:
    """A server process on a fixed port, which can be started again and again."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        app: str = "tests.chaos.app:app",
        alive: str = "/alive",
        module: str = "uvicorn",
        **env: str,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = folder / "endpoints.db"
        self.journal = folder / "journal"
        self.process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self._options = options
        self._app = app
        self._alive = alive
        self._module = module
        # What begins processes of its own, or is another interpreter, is started as such.
        self._is_forked = "--workers" not in options and not any(
            name.startswith("PYTHON") or name == "LD_PRELOAD" for name in env
        )
        self._env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JOURNAL": str(self.journal),
            "DURABLE_ENDPOINTS_DATABASE": str(self.database),
            "DURABLE_ENDPOINTS_RETRY_BASE": "20ms",
            **env,
        }

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self, ready: bool = True) -> None:
        arguments = [self._app, *self._address(), *self._options]
        log = self.folder / "log"
        if self._is_forked:
            self.process = fork(self._module, arguments, self._env, self.folder, log)
        else:
            with log.open("ab") as end:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", self._module, *arguments],
                    stdout=end,
                    stderr=end,
                    env=self._env,
                    cwd=self.folder,
                )
        if ready:
            self.wait_until_ready()

    def _address(self) -> list[str]:
        if self._module == "hypercorn":
            return ["--bind", f"127.0.0.1:{self.port}"]
        return ["--host", "127.0.0.1", "--port", str(self.port)]

    def wait_until_ready(self, patience: float = 60) -> None:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            answers = HTTPConnection("127.0.0.1", self.port, timeout=1)
            try:
                answers.request("GET", self._alive)
                answers.getresponse().close()
                return
            except (OSError, HTTPException):
                assert self.process is not None
                if self.process.poll() is not None:
                    break
                time.sleep(0.01)
            finally:
                answers.close()
        raise AssertionError(f"the server did not start:\n{self.log()}")

    def kill(self) -> None:
        """SIGKILL: no handler, no `finally`, nothing."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def terminate(self, patience: float = 15) -> int:
        """SIGTERM, and the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(patience)

    def wait(self, patience: float = 15) -> int:
        assert self.process is not None
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server does not end:\n{self.log()}") from None
        self.process = None
        return code

    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    def lines(self) -> list[str]:
        """What the application's bodies noted."""
        return self.journal.read_text("utf-8").splitlines() if self.journal.exists() else []

    def counts(self) -> Counter[str]:
        return Counter(self.lines())


async def persist(
    client: httpx.AsyncClient, method: str, url: str, key: str, patience: float = 60
) -> httpx.Response:
    """Ask like a client that does not give up: with a key, through crashes and redirects."""
    with anyio.fail_after(patience):
        while True:
            try:
                response = await client.request(
                    method, url, headers={"idempotency-key": key}, content=b"x" * 10
                )
                while response.status_code in (202, 303):
                    location = response.headers.get("location", str(response.url))
                    response = await client.get(response.url.join(location))
                if response.status_code != 503:
                    return response
            except httpx.TransportError:
                pass
            await anyio.sleep(0.03)
    raise AssertionError("unreachable")
