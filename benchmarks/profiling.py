"""Where processor time goes: a profile of a process by samples.

    python -m benchmarks.profiling FILE MODULE ARGUMENTS

runs a module as `python -m` does, and writes to FILE what was seen between one SIGUSR2 and the
next, as lines of a table.

The operating system interrupts the process after each tick (a few milliseconds) of processor time,
and Python then notes what the main thread is at. That costs next to nothing, so what is measured is
what runs without it, which a tracing profiler would slow down threefold. What other threads use is
not sampled, but asked of the operating system.

A sample belongs to the module of the innermost frame; C functions are charged to their caller, and
so uvloop and httptools to `asyncio`, which runs the loop, and to `uvicorn`.
"""

from __future__ import annotations

import runpy
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from types import FrameType

from benchmarks.report import table

INTERVAL = 0.001
"""Seconds of processor time between two samples; Linux rounds it up to its tick."""
SHOWN = 25
_PACKAGES = ("durable_endpoints", "durable_endpoints_server", "benchmarks")
"""Those of which each module has a line; of others the package has one."""


class Sampling:
    """Samples the main thread from `start` to `stop`."""

    def __init__(self) -> None:
        self.samples: Counter[str] = Counter()
        self._cpu = self._main_cpu = 0.0

    def start(self) -> None:
        self.samples.clear()
        self._cpu, self._main_cpu = time.process_time(), _main_thread_time()
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._cpu = time.process_time() - self._cpu
        self._main_cpu = _main_thread_time() - self._main_cpu

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Lines of a table: where, share of the process's processor time in percent, and ms."""
        total = self.samples.total() or 1
        seconds = {where: n / total * self._main_cpu for where, n in self.samples.items()}
        seconds["(other threads)"] = self._cpu - self._main_cpu
        ordered = sorted(seconds.items(), key=lambda line: -line[1])
        shown, rest = ordered[:SHOWN], ordered[SHOWN:]
        for where, spent in [*shown, ("(everything else)", sum(spent for _, spent in rest))]:
            yield where, f"{spent / self._cpu * 100:.1f}", f"{spent * 1e3:.0f}"

    def _sample(self, number: int, frame: FrameType | None) -> None:
        if frame is not None:
            self.samples[place(frame.f_globals.get("__name__", ""), frame.f_code.co_filename)] += 1


def place(module: str, file: str) -> str:
    """Under which name code counts: its module, or for other packages the package."""
    package = module.partition(".")[0]
    if package in _PACKAGES:
        return module
    if package.startswith("namedtuple_"):
        package = "namedtuple"
    if "site-packages" in file:
        return f"{package} (package)"
    return f"{package} (standard library)" if package else "(no module)"


def _main_thread_time() -> float:
    ident = threading.main_thread().ident
    assert ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(ident))


@contextmanager
def sampled() -> Iterator[None]:
    """Print a profile of what is done meanwhile in this process."""
    sampling = Sampling()
    sampling.start()
    try:
        yield
    finally:
        sampling.stop()
        show(sampling)


def show(sampling: Sampling) -> None:
    table(("processor time", "%", "ms"), sampling.rows())


def _main() -> None:
    file, module = Path(sys.argv[1]), sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    sampling = Sampling()
    turns = cycle((sampling.start, sampling.stop))

    def turn(number: int, frame: FrameType | None) -> None:
        change = next(turns)
        change()
        if change == sampling.stop:
            file.write_text("\n".join("\t".join(row) for row in sampling.rows()))

    signal.signal(signal.SIGUSR2, turn)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
