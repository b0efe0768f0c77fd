"""A clock that a test sets, for the processes that it starts (libfaketime): never the machine's.

Only what a clock shows is changed. The time that has passed (`CLOCK_MONOTONIC`) stays what it is,
as on a machine whose clock is set.
"""

from __future__ import annotations

from pathlib import Path

from tests.requirements import need

_PLACES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1")


class MachineClock:
    """Give `env` to a process, and its clock follows."""

    def __init__(self, folder: Path) -> None:
        library = next((str(path) for place in _PLACES for path in _glob(place)), None)
        need(library is not None, "libfaketime")
        self._file = folder / "clock"
        self.set_to(0)
        self.env = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set_to(self, seconds: float) -> None:
        """Let the clock be so much ahead of the real one. In one step, as a reader sees it."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{seconds:+f}s\n")
        draft.replace(self._file)


def _glob(place: str) -> list[Path]:
    return sorted(Path("/").glob(place.lstrip("/")))
