"""What Python does for a request, counted: bytecodes and calls of the event loop's thread.

Unlike times these are the same on every machine and under any load, to within the chance of who
meets whom. They say nothing of what C code does, nor of the collector, the disk and the network.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from benchmarks import apps
from benchmarks.in_process import call, running
from benchmarks.options import Options
from benchmarks.profiling import place
from benchmarks.report import heading, table

REQUESTS = 320
AT_ONCE = 16
_WARM = 64
_SHOWN = 30
_VARIANTS = {
    "bare FastAPI handler": apps.bare,
    "floor: the same commits, no SDK": apps.floor,
    "each": apps.each,
    "background": apps.background,
}


class Counting:
    """Counts what is executed while it is on."""

    def __init__(self) -> None:
        self._bytecodes: Counter[CodeType] = Counter()
        self._calls: Counter[CodeType] = Counter()
        self._modules: dict[CodeType, str] = {}

    def __enter__(self) -> Counting:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *failure: object) -> None:
        sys.settrace(None)

    def by_module(self) -> dict[str, tuple[float, float]]:
        """Bytecodes and calls a request; a coroutine that goes on counts as called."""
        bytecodes: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        for code, module in self._modules.items():
            bytecodes[module] += self._bytecodes[code]
            calls[module] += self._calls[code]
        return {module: (n / REQUESTS, calls[module] / REQUESTS) for module, n in bytecodes.items()}

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if event == "call":
            if code not in self._modules:
                self._modules[code] = place(frame.f_globals.get("__name__", ""), code.co_filename)
            self._calls[code] += 1
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            self._bytecodes[code] += 1
        return self._trace


async def _requests(app: Any, count: int) -> None:
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            await call(app, "/run", body=apps.BODY)

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))


async def _count(name: str) -> dict[str, tuple[float, float]]:
    app = _VARIANTS[name]()
    async with running(app):
        await _requests(app, _WARM)
        with Counting() as counting:
            await asyncio.create_task(_requests(app, REQUESTS))
    return counting.by_module()


def measure(folder: Path, options: Options) -> None:
    heading(
        f"Bytecodes and calls of Python for three steps, {AT_ONCE} requests at once, no sockets"
    )
    counted: dict[str, dict[str, tuple[float, float]]] = {}
    for name in _VARIANTS:
        os.environ["DURABLE_ENDPOINTS_DATABASE"] = str(folder / f"counts-{len(counted)}.db")
        counted[name] = asyncio.run(_count(name))
    rows = []
    for name, modules in counted.items():
        bytecodes, calls = (sum(column) for column in zip(*modules.values(), strict=True))
        rows.append((name, f"{bytecodes:,.0f}", f"{calls:,.0f}"))
    table(("", "bytecodes", "calls"), rows)
    each = sorted(counted["each"].items(), key=lambda line: -line[1][0])
    heading("Of `each`, by module")
    table(
        ("", "bytecodes", "calls"),
        [(name, f"{bytecodes:,.0f}", f"{calls:.1f}") for name, (bytecodes, calls) in each[:_SHOWN]],
    )
