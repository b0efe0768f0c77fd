"""SQLite's write-ahead log: synced, moved into the database, and written once more after an error.

When a sync fails, Linux takes what it could not write for written: the next sync succeeds, and the
log has a hole on the disk. After a loss of power SQLite reads it up to there, whatever was synced
behind. So it is written again from the system's memory, which still has it, before anything else is
acknowledged (`fsync(2)`; Rebello et al., "Can Applications Recover from fsync Failures?", USENIX
ATC 2020).
"""

from __future__ import annotations

import contextlib
import os
import sys
from array import array
from typing import Final, NamedTuple

import apsw

_CHECKPOINT: Final = 1_000
"""Pages in the log from which on they are moved into the database: SQLite's own default."""
_HEADER: Final = 32
_FRAME_HEADER: Final = 24
"""Bytes of the log's header, and of the one of each frame, which holds a page
(https://sqlite.org/fileformat2.html#the_write_ahead_log)."""
_PIECE: Final = 1024 * 1024
_WORD: Final = 0xFFFFFFFF


class Log:
    """The log of an open database, for the thread that writes it."""

    def __init__(self, writer: apsw.Connection) -> None:
        """What a killed process has left may have a hole, and be whole in the system's memory: so
        it is written again here, too. Raises `OSError` and `apsw.Error`."""
        self._writer = writer
        # SQLite keeps one file as long as the database is open.
        self._file = os.open(f"{writer.filename}-wal", os.O_RDWR)
        self._is_open = True
        self._is_doubtful = False
        """Whether the disk may lack what the system believes to be there."""
        try:
            self._write_again()
        except apsw.BusyError:
            self._is_doubtful = True  # another program writes: the first change will wait for it
        except BaseException:
            self.close()
            raise
        writer.set_wal_hook(self._committed)

    def sync(self) -> None:
        """Bring what was written to the disk. Raises `OSError`."""
        if self._is_doubtful:
            self.mend()
            return
        try:
            flush(self._file)
        except OSError:
            self._is_doubtful = True
            raise

    def doubt(self, error: apsw.Error) -> None:
        """Note what SQLite says about a change."""
        if isinstance(error, apsw.IOError):
            self._is_doubtful = True

    def mend(self) -> None:
        """Return when nothing is doubtful. Raises `OSError`: then nothing may be acknowledged, and
        nothing moved into the database."""
        if not self._is_doubtful:
            return
        try:
            if not self._is_whole():
                raise OSError("it has lost what it could not write: start the application again")
            self._write_again()
        except apsw.Error as error:
            raise OSError(str(error)) from error
        self._is_doubtful = False

    def close(self) -> None:
        if self._is_open:
            os.close(self._file)
        self._is_open = False

    def _committed(self, connection: apsw.Connection, name: str, pages: int) -> int:
        """Move the log into the database. SQLite would by itself, and not say when that fails."""
        if pages >= _CHECKPOINT:
            try:
                connection.wal_checkpoint(name, mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.Error as error:
                self.doubt(error)
        return apsw.SQLITE_OK

    def _write_again(self) -> None:
        """Write the log once more, and sync it."""
        end = _HEADER + self._frames() * self._header.frame_size
        self._writer.execute("begin immediate")  # nobody else may write it meanwhile
        try:
            with contextlib.suppress(OSError):
                flush(self._file)  # which may tell once more of the error that is known
            for at in range(0, end, _PIECE):
                put(self._file, os.pread(self._file, min(_PIECE, end - at), at), at)
            flush(self._file)
        finally:
            self._writer.execute("rollback")

    def _is_whole(self) -> bool:
        """Whether it is what SQLite wrote, by its checksums."""
        header = self._header
        sums = _checksum(header.order, header.content, (0, 0))
        if sums != header.sums:
            return False
        for n in range(self._frames()):
            frame = self._read(_HEADER + n * header.frame_size, header.frame_size)
            sums = _checksum(header.order, frame[:8], sums)
            sums = _checksum(header.order, frame[_FRAME_HEADER:], sums)
            if frame[8:16] != header.salts or _pair(frame[16:24]) != sums:
                return False
        return True

    def _frames(self) -> int:
        """How many there are."""
        ((_, frames, _),) = self._writer.execute("pragma wal_checkpoint(noop)").fetchall()
        assert isinstance(frames, int)
        return frames

    @property
    def _header(self) -> _Header:
        found = self._read(0, _HEADER)
        return _Header(
            order="big" if found[3] & 1 else "little",
            frame_size=_FRAME_HEADER + int.from_bytes(found[8:12]),
            salts=found[16:24],
            content=found[:24],
            sums=_pair(found[24:32]),
        )

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file, size, offset).ljust(size, b"\0")


class _Header(NamedTuple):
    order: str
    """Of the bytes in a word of what is summed up."""
    frame_size: int
    salts: bytes
    """Repeated in the frames that belong to this log, and not to an older one in the same file."""
    content: bytes
    sums: tuple[int, int]


def flush(file: int) -> None:
    """Bring what was written to `file` to the platters."""
    if sys.platform == "darwin":  # where fsync alone does not
        import fcntl

        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        getattr(os, "fdatasync", os.fsync)(file)


def put(file: int, data: bytes, offset: int) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _pair(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[:4]), int.from_bytes(data[4:])


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    words = array("I", data)
    if order != sys.byteorder:
        words.byteswap()
    first, second = sums
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & _WORD
        second = (second + other + first) & _WORD
    return first, second
