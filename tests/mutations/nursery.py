"""A process that runs tests against other copies of the shipped packages, one copy in each child.

It has imported what the packages and the tests need of others, and nothing of ours, so that a child
begins where its own copy is imported.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

import pytest

from tests.mutations.planting import PACKAGES, ROOT

_IMPORTED: Final = (
    "anyio._backends._asyncio",
    "anyio.pytest_plugin",
    "apsw",
    "click",
    "contextvars_extras",
    "cryptography.hazmat.primitives.ciphers.aead",
    "fastapi",
    "fastapi.testclient",
    "filelock",
    "httpx",
    "orjson",
    "ulid",
    "unittest.mock",
    "uvicorn",
    "websockets.asyncio.client",
    "xdist.dsession",
    "xdist.looponfail",
    "xdist.scheduler",
)
PATIENCE: Final = 45.0
"""Seconds that the tests of one bug may take on a machine that is busy."""
_PAUSE: Final = 0.01
_BROKEN: Final = ("ImportError", "ModuleNotFoundError", "NameError", "SyntaxError")
"""What a test raises if the bug is no bug, but a source that does not run."""


class Verdict(NamedTuple):
    """What came of the tests."""

    failed: tuple[str, ...]
    """The tests that failed, each with the last line of what it said."""
    trouble: str
    """Why this says nothing about the copy, if it does not."""
    output: str
    seconds: float


class Nursery:
    """The process, as long as it is needed."""

    def __enter__(self) -> Nursery:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def run(self, copy: Path, tests: tuple[str, ...], patience: float = PATIENCE) -> Verdict:
        """Run tests of this checkout with the packages that are in the folder `copy`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        began = time.monotonic()
        self._process.stdin.write(json.dumps([str(copy), tests, patience]) + "\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError("the process that runs tests has ended")
        output = (copy / "output").read_text("utf-8", "replace")
        seconds = time.monotonic() - began
        if answer.strip() != "ended":
            return Verdict((), f"the tests had not ended after {patience:g} s", output, seconds)
        if not (copy / "verdict").exists():
            return Verdict((), "the tests did not run to their end", output, seconds)
        failed, trouble = json.loads((copy / "verdict").read_text("utf-8"))
        return Verdict(tuple(failed), trouble, output, seconds)


# In that process


def main() -> None:
    for module in _IMPORTED:
        import_module(module)
    gc.freeze()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    parent = os.getppid()
    for line in sys.stdin:
        folder, tests, patience = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _test(Path(folder), tests)
            os._exit(0)
        print("ended" if _ends(pid, patience, parent) else "killed", flush=True)


def _ends(pid: int, patience: float, parent: int) -> bool:
    """Whether a child ends in time. It does not outlive this process, nor whoever wanted it."""
    deadline = time.monotonic() + patience
    has_ended = False
    try:
        while not has_ended and time.monotonic() < deadline and os.getppid() == parent:
            time.sleep(_PAUSE)
            has_ended = os.waitpid(pid, os.WNOHANG)[0] != 0
    finally:
        if not has_ended:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return has_ended


def _test(copy: Path, tests: list[str]) -> None:
    os.setpgid(0, 0)  # to be killed with all that it starts
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(copy / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.path[0] = str(copy)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(copy), str(ROOT)])
    for package in PACKAGES:
        import_module(package)  # before pytest puts the checkout first
    watcher = _Watcher()
    # What is imported already cannot be rewritten, and need not be: who reads a failure here knows
    # that there is a bug.
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--assert=plain", "--tb=native"]
    code = pytest.main([*options, *tests], plugins=[watcher])
    trouble = watcher.trouble
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        trouble = trouble or f"pytest ended with {code}"
    if strangers := _strangers(copy):
        trouble = f"not imported from the copy: {', '.join(strangers)}"
    sys.stdout.flush()
    (copy / "verdict").write_text(json.dumps([watcher.failed, trouble]), "utf-8")


def _strangers(copy: Path) -> list[str]:
    """Modules of ours that are not those of the copy."""
    return [
        name
        for name, module in sys.modules.items()
        if name.partition(".")[0] in PACKAGES
        and not str(getattr(module, "__file__", None)).startswith(str(copy))
    ]


class _Watcher:
    """A plugin of pytest that keeps what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.trouble = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if not report.failed:
            return
        said = str(report.longreprtext).strip().rpartition("\n")[2]
        if report.when != "call" or said.startswith(_BROKEN):
            self.trouble = self.trouble or f"{report.nodeid} did not run: {said}"
        else:
            self.failed.append(f"{report.nodeid}: {said}")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.trouble = f"{report.nodeid} could not be collected"


if __name__ == "__main__":
    main()
