"""A disk that loses its power: what it may hold afterwards.

What was synced is there. Of what was not, any part may be: each write wholly, not at all, or some
of its sectors, whichever came before or after it. A file that was made or deleted may be there or
not until the folder is synced, which SQLite does with the first sync of each new journal or log
(`UNIXFILE_DIRSYNC` in its os_unix.c).
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from tests.chaos.disk.recording import (
    Deleted,
    Dropped,
    Flushed,
    Opened,
    Operation,
    Synced,
    Truncated,
    Written,
)

_SECTOR = 512


class Disk:
    """Takes operations in their order, and can lose its power after each."""

    def __init__(self) -> None:
        self._names: dict[str, _File] = {}
        self._kept: dict[str, _File] = {}
        """Names as they are certainly on the platters."""

    def take(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            self._take(operation)

    def _take(self, operation: Operation) -> None:
        name = operation.file.name
        if isinstance(operation, Deleted):
            self._names.pop(name, None)
            if operation.is_synced:
                self._kept.pop(name, None)
            return
        file = self._names.get(name)
        if file is None:
            file = self._names[name] = _File()
        if isinstance(operation, Dropped):
            file.pending.clear()
        elif isinstance(operation, Synced | Flushed):
            file.sync()
            if isinstance(operation, Synced) and self._kept.get(name) is not file:
                self._kept = dict(self._names)
        elif not isinstance(operation, Opened):
            file.pending.append(operation)

    def after_power_loss(self, chance: random.Random, fate: float | None) -> dict[str, bytes]:
        """The contents of the files, by their names, as they may be then. `fate` is how likely a
        write survives that was not synced; None for any."""
        if fate is None:
            fate = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        found: dict[str, bytes] = {}
        for name in sorted(self._names.keys() | self._kept.keys()):
            file, kept = self._names.get(name), self._kept.get(name)
            if file is not kept and chance.random() >= fate:
                file = kept
            if file is not None:
                found[name] = file.after_power_loss(chance, fate)
        return found


class _File:
    def __init__(self) -> None:
        self.content = bytearray()
        """What was synced."""
        self.pending: list[Written | Truncated] = []

    def sync(self) -> None:
        for operation in self.pending:
            _apply(self.content, operation)
        self.pending.clear()

    def after_power_loss(self, chance: random.Random, fate: float) -> bytes:
        """`fate` is how likely a write survives."""
        content = bytearray(self.content)
        for operation in self.pending:
            if isinstance(operation, Truncated):
                if chance.random() < fate:
                    _apply(content, operation)
            elif chance.random() < 0.3:  # torn
                for sector in _sectors(operation):
                    if chance.random() < fate:
                        _apply(content, sector)
            elif chance.random() < fate:
                _apply(content, operation)
        return bytes(content)


def _apply(content: bytearray, operation: Written | Truncated) -> None:
    if isinstance(operation, Truncated):
        del content[operation.size :]
        return
    end = operation.offset + len(operation.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[operation.offset : end] = operation.data


def _sectors(write: Written) -> Iterable[Written]:
    start = 0
    while start < len(write.data):
        size = _SECTOR - (write.offset + start) % _SECTOR
        yield Written(write.file, write.offset + start, write.data[start : start + size])
        start += size
