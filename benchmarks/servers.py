"""The measured servers: one uvicorn process each, on loopback, with a database of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

VARIANTS = ("bare", "floor", "each", "background")


class Server:
    """A process that serves one of the variants of `module`."""

    def __init__(self, variant: str, folder: Path, module: str = "benchmarks.apps") -> None:
        self.variant = variant
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        program = [sys.executable, "-m", "uvicorn", "--factory", f"{module}:{variant}"]
        options = ["--port", str(self.port), "--no-access-log", "--log-level", "warning"]
        environment = {
            **os.environ,
            "DURABLE_ENDPOINTS_DATABASE": str(folder / f"{variant}.db"),
        }
        self._process = subprocess.Popen([*program, *options], env=environment)

    def __enter__(self) -> Server:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.05)
        self._process.kill()
        raise RuntimeError(f"the {self.variant} server does not start")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(30)

    def cpu_seconds(self) -> float:
        """What the process has used so far, in user and system mode."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> float:
        """The process's memory in bytes."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
