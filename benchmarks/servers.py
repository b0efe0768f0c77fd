"""The measured servers: a process each, on loopback, with a database of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

VARIANTS = ("bare", "floor", "each", "background")
"""Applications with the engine in their own process, or without one."""
OVER_A_SERVER = ("each", "background")
"""Those that are measured with a companion server too."""

SIGNING_KEY = "signkey-bench-" + "5e" * 32
EVENT_KEY = "an-event-key-for-benchmarks"


class Process:
    """A server in a process of its own."""

    def __init__(self, name: str, program: Sequence[str], environment: Mapping[str, str]) -> None:
        """`program` is what follows the interpreter, without the port that it shall listen on."""
        self.name = name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        arguments = [sys.executable, *program, "--port", str(self.port)]
        self._process = subprocess.Popen(arguments, env={**os.environ, **environment})

    def __enter__(self) -> Process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.05)
        self._process.kill()
        raise RuntimeError(f"{self.name} does not start")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """What the process has used so far, in user and system mode."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> float:
        """The process's memory in bytes."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class Server(Process):
    """An application: one of the variants of `module`. With a companion, that keeps its runs."""

    def __init__(
        self,
        variant: str,
        folder: Path,
        module: str = "benchmarks.apps",
        companion: Companion | None = None,
    ) -> None:
        self.companion = companion
        program = ["-m", "uvicorn", "--factory", f"{module}:{variant}"]
        options = ["--no-access-log", "--log-level", "warning"]
        where = (
            {"DURABLE_ENDPOINTS_DATABASE": str(folder / f"{variant}.db")}
            if companion is None
            else {
                "DURABLE_ENDPOINTS_SERVER_URL": companion.url,
                "DURABLE_ENDPOINTS_SIGNING_KEY": SIGNING_KEY,
                "DURABLE_ENDPOINTS_SEALING_KEY": "a sealing key for benchmarks only",
            }
        )
        name = variant if companion is None else f"{variant}, server"
        super().__init__(name, [*program, *options], where)

    def cpu_seconds(self) -> float:
        """That of the companion is added."""
        beside = 0.0 if self.companion is None else self.companion.cpu_seconds()
        return super().cpu_seconds() + beside


class Companion(Process):
    """`durable-endpoints serve`."""

    def __init__(self, folder: Path) -> None:
        program = ["-m", "durable_endpoints_server", "serve", "--log-level", "warning"]
        super().__init__(
            "the companion server",
            [
                *program,
                *("--database", str(folder / "companion.db")),
                *("--app-origin", "http://127.0.0.1:9"),
            ],
            {
                "DURABLE_ENDPOINTS_SIGNING_KEY": SIGNING_KEY,
                "DURABLE_ENDPOINTS_EVENT_KEY": EVENT_KEY,
            },
        )
