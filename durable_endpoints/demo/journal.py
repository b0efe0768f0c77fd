"""The demo's journal: what the application did, as lines in a file that outlives its processes."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from durable_endpoints.hooks import Hook, Result, RunInfo, StepInfo


@dataclass(frozen=True)
class Entry:
    """One thing that happened: to an execution (`step` is empty) or to a step's body."""

    process: int
    run: str
    what: str
    """`begins`, or the outcome of its end."""
    step: str = ""
    attempt: int = 0
    reentry: bool = False
    error: str = ""
    at: float = field(default_factory=time.time)
    """When, in seconds of the epoch."""


class JournalHook(Hook):
    """Writes the journal, each entry with one `write`, so that a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def before_run(self, run: RunInfo) -> None:
        self._write(Entry(os.getpid(), run.run_id, "begins", reentry=run.reentry))

    async def after_run(self, run: RunInfo, result: Result) -> None:
        self._write(Entry(os.getpid(), run.run_id, result.outcome, reentry=run.reentry))

    async def before_step(self, run: RunInfo, step: StepInfo) -> None:
        self._write(Entry(os.getpid(), run.run_id, "begins", step.name, step.attempt))

    async def after_step(self, run: RunInfo, step: StepInfo, result: Result) -> None:
        error = "" if result.error is None else f"{type(result.error).__name__}: {result.error}"
        entry = Entry(os.getpid(), run.run_id, result.outcome, step.name, step.attempt, error=error)
        self._write(entry)

    def _write(self, entry: Entry) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, orjson.dumps(asdict(entry)) + b"\n")
        finally:
            os.close(descriptor)


def read(path: Path, skip: int) -> list[Entry]:
    """The entries after the first `skip`; none while there is no journal."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [Entry(**orjson.loads(line)) for line in lines[skip:]]
