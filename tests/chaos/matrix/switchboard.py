"""What a process counts of its boundaries, and where it shall die: a file that outlives it.

The file is mapped into the memory of the process and of whoever watches it. A process that crosses
a boundary counts that, and sends itself the signal that was asked for, if this is the crossing.
"""

from __future__ import annotations

import mmap
import os
import signal
from pathlib import Path
from typing import Final

from tests.chaos.matrix.boundaries import BOUNDARIES

_CELLS: Final = 4
_CROSSED, _LEFT, _SIGNAL, _FIRED = range(_CELLS)
_INDEX: Final = {name: n * _CELLS for n, name in enumerate(BOUNDARIES)}
_SIZE: Final = len(BOUNDARIES) * _CELLS * 8


class Switchboard:
    """The crossings of one process, through all of its lives."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)
        self._cells = memoryview(self._memory).cast("q")

    # The process itself

    def cross(self, boundary: str) -> None:
        """Count a crossing. Does not return, if the process shall be killed here."""
        cells, at = self._cells, _INDEX[boundary]
        cells[at + _CROSSED] += 1
        if cells[at + _LEFT] > 0:
            cells[at + _LEFT] -= 1
            if cells[at + _LEFT] == 0:
                cells[at + _FIRED] += 1
                os.kill(os.getpid(), cells[at + _SIGNAL])

    # Who watches it

    def arm(self, boundary: str, crossings: int, number: signal.Signals) -> None:
        """Let the process send itself this signal so many crossings from now."""
        at = _INDEX[boundary]
        self._cells[at + _SIGNAL] = number
        self._cells[at + _FIRED] = 0
        self._cells[at + _LEFT] = crossings

    def disarm(self) -> None:
        """Let it live."""
        for at in _INDEX.values():
            self._cells[at + _LEFT] = 0

    def has_fired(self, boundary: str) -> bool:
        """Whether the signal was sent since it was asked for."""
        return self._cells[_INDEX[boundary] + _FIRED] > 0

    def crossed(self, boundary: str) -> int:
        """How often the boundary was crossed."""
        return self._cells[_INDEX[boundary] + _CROSSED]

    def close(self) -> None:
        self._cells.release()
        self._memory.close()
