"""The demo's application as a process of its own, which can be killed and started anew."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from durable_endpoints.demo.llm import Llm

_PATIENCE = 20.0
_APP = "durable_endpoints.demo.app:app"


class AppError(Exception):
    """The application does not do what the demo needs. The message ends with its last words."""


class AppProcess:
    """uvicorn with the demo's application, on one port for all its lives."""

    def __init__(self, folder: Path, llm: Llm | None = None) -> None:
        self.folder = folder
        self.llm = llm
        self.database = folder / "endpoints.db"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers. Raises `AppError`."""
        # A session of its own: Ctrl-C in the terminal reaches the demo, which then ends this.
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", _APP, "--port", str(self.port)],
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                httpx.get(f"{self.url}/alive", timeout=2, trust_env=False).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.03)
        raise self.error("the application does not start")

    def environment(self) -> dict[str, str]:
        """The caller's environment, without settings meant for another application."""
        mine = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DURABLE_ENDPOINTS_", "DURABLE_DEMO_", "INNGEST_"))
        }
        if self.llm is not None:
            mine["DURABLE_DEMO_LLM_URL"] = self.llm.url
            mine["DURABLE_DEMO_LLM_MODEL"] = self.llm.model
        return mine | {
            "DURABLE_DEMO_FOLDER": str(self.folder),
            "DURABLE_ENDPOINTS_DATABASE": f"sqlite:///{self.database}",
            "DURABLE_ENDPOINTS_RETRY_BASE": "300ms",
        }

    def kill(self) -> int:
        """SIGKILL: no handler runs, nothing is flushed. The exit status, -9."""
        return self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM: it finishes what runs. The exit status."""
        return self._end(signal.SIGTERM)

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self._process is not None:
            self.kill()

    def error(self, message: str) -> AppError:
        """An error with the end of the application's log."""
        words = self._log.read_text("utf-8", "replace").splitlines()[-15:]
        return AppError("\n".join([message, *(f"  | {line}" for line in words)]))

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(number)
        try:
            return process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise self.error(f"the application does not end on {number.name}") from None

    @property
    def _log(self) -> Path:
        return self.folder / "app.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
