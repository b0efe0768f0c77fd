"""The measured servers: a process each, on loopback, with a database of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

VARIANTS = ("bare", "floor", "each", "background")
"""Applications with the engine in their own process, or without one."""
OVER_A_SERVER = ("each", "background")
"""Those that are measured with a companion server too."""

SIGNING_KEY = "signkey-bench-" + "5e" * 32
EVENT_KEY = "an-event-key-for-benchmarks"
PORT = "{port}"
"""Stands in a command for the port that its process shall listen on."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A server in a process of its own. Its command has to listen on `PORT`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path | None = None,
        port: int | None = None,
    ) -> None:
        """What it prints goes to `log`, if that is given. The port is a free one by default."""
        self.name = name
        self.port = port or free_port()
        self._log = log
        arguments = [part.replace(PORT, str(self.port)) for part in command]
        output = None if log is None else log.open("wb")
        self._process = subprocess.Popen(
            arguments, env={**os.environ, **environment}, stdout=output, stderr=output
        )
        if output is not None:
            output.close()

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.05)
        self._process.kill()
        said = "" if self._log is None else self._log.read_text(errors="replace")[-2_000:]
        raise RuntimeError(f"{self.name} does not start. {said}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """What the process and its children have used so far, in user and system mode."""
        ticks = 0
        for pid in _tree(self._process.pid):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident(self) -> float:
        """Their memory in bytes."""
        pages = sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            for pid in _tree(self._process.pid)
        )
        return pages * os.sysconf("SC_PAGE_SIZE")


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _tree(int(child))


class PythonProcess(Process):
    """A module of this interpreter, that can be profiled."""

    def __init__(
        self, name: str, module: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        """`module` is its name, and what follows it but for the port."""
        self._profile = folder / f"{name.replace(' ', '-')}-{id(self)}.profile"
        launcher = [sys.executable, "-m", "benchmarks.profiling", str(self._profile)]
        super().__init__(name, [*launcher, *module, "--port", PORT], environment)

    @contextmanager
    def profiled(self) -> Iterator[list[tuple[str, ...]]]:
        """The lines of the profile of what is done meanwhile, when it is over."""
        rows: list[tuple[str, ...]] = []
        self._process.send_signal(signal.SIGUSR2)
        yield rows
        self._process.send_signal(signal.SIGUSR2)
        while not self._profile.exists():
            time.sleep(0.05)
        time.sleep(0.05)
        rows += (tuple(line.split("\t")) for line in self._profile.read_text().splitlines())
        self._profile.unlink()


class Server(PythonProcess):
    """An application: one of the variants of `module`. With a companion, that keeps its runs."""

    def __init__(
        self,
        variant: str,
        folder: Path,
        module: str = "benchmarks.apps",
        companion: PythonProcess | None = None,
    ) -> None:
        self.companion = companion
        program = ["uvicorn", "--factory", f"{module}:{variant}"]
        options = ["--no-access-log", "--log-level", "warning"]
        where = (
            {"DURABLE_ENDPOINTS_DATABASE": str(folder / f"{variant}.db")}
            if companion is None
            else {
                "DURABLE_ENDPOINTS_SERVER_URL": companion.url,
                "DURABLE_ENDPOINTS_APP": variant,
                "DURABLE_ENDPOINTS_SIGNING_KEY": SIGNING_KEY,
                "DURABLE_ENDPOINTS_SEALING_KEY": "a sealing key for benchmarks only",
            }
        )
        name = variant if companion is None else f"{variant}, server"
        super().__init__(name, [*program, *options], where, folder)

    def cpu_seconds(self) -> float:
        """That of the companion is added."""
        beside = 0.0 if self.companion is None else self.companion.cpu_seconds()
        return super().cpu_seconds() + beside


class FloorServer(PythonProcess):
    """What the floor with a server writes to."""

    def __init__(self, folder: Path) -> None:
        module = ["benchmarks.far_floor", str(folder / "far-floor.db")]
        super().__init__("the floor's server", module, {}, folder)


class Companion(PythonProcess):
    """`durable-endpoints serve`."""

    def __init__(
        self, folder: Path, database: str = "companion.db", app_origin: str = "http://127.0.0.1:9"
    ) -> None:
        program = ["durable_endpoints_server", "serve", "--log-level", "warning"]
        options = ["--database", str(folder / database), "--app-origin", app_origin]
        keys = {
            "DURABLE_ENDPOINTS_SIGNING_KEY": SIGNING_KEY,
            "DURABLE_ENDPOINTS_EVENT_KEY": EVENT_KEY,
        }
        super().__init__("the companion server", [*program, *options], keys, folder)
