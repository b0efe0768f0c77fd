"""What the processes write down: lines that are in the file once `write` has returned, whatever
happens to the process then."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson


class Record(NamedTuple):
    """Something that happened."""

    at: int
    """Nanoseconds on the machine's monotonic clock, which all processes share."""
    process: int
    kind: str
    about: Any


class Recorder:
    """Appends to a file, as one of several processes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, kind: str, about: Any) -> None:
        line = orjson.dumps([time.monotonic_ns(), os.getpid(), kind, about])
        os.write(self._file, line + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read_records(path: Path) -> Iterator[Record]:
    """All that was written. The order is the order of the writes."""
    if path.exists():
        for line in path.read_bytes().splitlines():
            yield Record(*orjson.loads(line))
