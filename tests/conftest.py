"""What all tests share: asyncio under anyio's plugin, a virtual engine, and how they are spread
over processes."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_endpoints import testing
from durable_endpoints.testing import VirtualEngine
from tests.requirements import missing
from tests.spreading import Spreading, place_of
from tests.wire.engine import use_wire


@pytest.fixture
def forgotten_coroutines_end_here() -> Iterator[None]:
    """What a test forgets on purpose goes with it. Else Python complains of that in the middle of
    some later test."""
    yield
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        gc.collect()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": False}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        choices=["embedded", "wire"],
        default=os.environ.get("DURABLE_TESTS_ENGINE", "embedded"),
        help="what keeps the runs of the tests of the SDK: an engine in the application's process, "
        "or a server behind a connection in memory",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before any test is imported: whichever engine a test makes is the one that was asked for."""
    if config.getoption("--engine") == "wire":
        use_wire()


@pytest.fixture
def engine() -> VirtualEngine:
    return testing.VirtualEngine()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Folders are tested by several processes, more than there are processors, because many tests
    wait for other processes; and tests of named files by this one, where a debugger and prints
    work."""
    named = [Path(argument.partition("::")[0]) for argument in config.args]
    return 0 if all(path.is_file() for path in named) else (os.cpu_count() or 1) * 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How pytest-xdist shall spread the tests."""
    return Spreading(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.config.getoption("--engine") != "embedded":
            for mark in item.iter_markers("embedded"):
                item.add_marker(pytest.mark.skip(f"only embedded: {mark.args[0]}"))
    items.sort(key=lambda item: place_of(item.nodeid))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of a process that tests for another one: tell it what this machine lacks."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["missing"] = sorted(missing)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process that tested for this one has ended."""
    missing.update(getattr(node, "workeroutput", {}).get("missing", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One loud line about what this machine could not test."""
    if missing:
        lacks = ", ".join(sorted(missing))
        terminalreporter.write_line(
            f"NOT EVERYTHING WAS TESTED: this machine has no {lacks}", yellow=True, bold=True
        )
