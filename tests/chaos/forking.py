"""Server processes that begin where their imports are done.

A server takes most of a second to import what it is made of. Tests start hundreds, so one process
does that once, begins nothing, and divides itself whenever a server is wanted. Each part becomes a
program in its own folder, environment and log, as one that was started by the shell, and dies like
one.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[2]
_IMPORTED: Final = (
    "durable_endpoints.demo.driver",
    "durable_endpoints.engines.embedded",
    "durable_endpoints.engines.remote",
    "durable_endpoints_server.cli",
    "durable_endpoints_server.serving",
    "fastapi",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.main",
    "uvicorn.protocols.http.h11_impl",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_impl",
)
"""What servers are made of. None of it opens, starts or decides anything when it is imported."""
_PAUSE: Final = 0.005
"""Seconds between two looks at a process that is to end."""


class ForkedProcess:
    """A process that was divided off: what a `subprocess.Popen` is to those who started it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, as that of a `Popen`, or None while the process runs."""
        if self.returncode is None:
            self.returncode = _ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once there is one. Raises `subprocess.TimeoutExpired`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                assert timeout is not None
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(_PAUSE)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(
    module: str, arguments: Sequence[str], env: Mapping[str, str], folder: Path, log: Path
) -> ForkedProcess:
    """Run `python -m MODULE ARGUMENTS` in `folder`; what it prints is appended to `log`."""
    wanted = {"module": module, "arguments": arguments, "env": dict(env)}
    pid = _ask({**wanted, "folder": str(folder), "log": str(log)})
    assert pid is not None
    return ForkedProcess(pid)


_lock: Final = threading.Lock()
_parents: Final[list[subprocess.Popen[str]]] = []


def _ask(question: dict[str, Any]) -> int | None:
    """Let the process that divides itself do something. It is started by the first question."""
    with _lock:
        if not _parents:
            _parents.append(_start())
        parent = _parents[0]
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(json.dumps(question) + "\n")
        parent.stdin.flush()
        answer: int | None = json.loads(parent.stdout.readline())
        return answer


def _start() -> subprocess.Popen[str]:
    parent = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    atexit.register(parent.communicate)
    return parent


# In the process that divides itself


def main() -> None:
    """Serve questions until nobody can ask any more; what still runs then is killed."""
    for module in _IMPORTED:
        import_module(module)
    codes: dict[int, int | None] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            answer = _poll(question["poll"], codes)
        else:
            answer = os.fork()
            if answer == 0:
                _become(question)
                return
            codes[answer] = None
        print(json.dumps(answer), flush=True)
    for pid, code in codes.items():
        if code is None:
            os.kill(pid, signal.SIGKILL)


def _poll(pid: int, codes: dict[int, int | None]) -> int | None:
    if codes[pid] is None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        codes[pid] = os.waitstatus_to_exitcode(status) if ended else None
    return codes[pid]


def _become(wanted: dict[str, Any]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(wanted["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    sys.argv = [wanted["module"], *wanted["arguments"]]
    sys.path[0] = wanted["folder"]
    runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
