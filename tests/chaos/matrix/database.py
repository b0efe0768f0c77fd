"""Looking at the database from outside: a copy of the files that a killed process left, or the file
that a living one serves."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import apsw

_STEPS: Final = """
select r.path, r.id, s.name, s.value from steps s join runs r on r.id = s.run_id
where s.state = 3 and s.kind = 'run'
"""
_RUNS: Final = "select path, id, status, reason from runs"


class Run(NamedTuple):
    """A run as it stands."""

    id: str
    status: int
    """A `Status`."""
    reason: str


class Look(NamedTuple):
    """What was in a database."""

    at: int
    """Nanoseconds on the machine's monotonic clock."""
    integrity: str
    """`ok`, or what SQLite complains about."""
    steps: dict[tuple[str, str, str], bytes]
    """Results of bodies that are done, by the run's name and id, and the step's name."""
    runs: dict[str, list[Run]]
    """By name: what follows the kind in the path."""


def look_at_remains(path: Path) -> Look:
    """What a process that was killed has left. The files stay as they are: whoever is started next
    shall find them so."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (path, path.with_name(f"{path.name}-wal")):
            if file.exists():
                shutil.copy(file, folder)
        return look(Path(folder) / path.name)


def look(path: Path) -> Look:
    """What is in a database now. A process may be serving it."""
    steps: dict[tuple[str, str, str], bytes] = {}
    runs: dict[str, list[Run]] = {}
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(5_000)
        integrity = str(connection.execute("pragma integrity_check").fetchall()[0][0])
        for run_path, run_id, name, value in connection.execute(_STEPS):
            steps[_name_of(run_path), run_id, name] = value
        for run_path, *run in connection.execute(_RUNS):
            runs.setdefault(_name_of(run_path), []).append(Run(*run))
    finally:
        connection.close()
    return Look(time.monotonic_ns(), integrity, steps, runs)


def _name_of(path: str) -> str:
    return path.split("/", 2)[2]
