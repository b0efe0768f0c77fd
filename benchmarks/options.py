"""What the command line says about how to measure."""

from __future__ import annotations

from typing import NamedTuple


class Options(NamedTuple):
    rounds: int
    """How often each variant has its turn, or the whole is repeated."""
    seconds: float
    """Of each turn over HTTP."""
    runs: int
    """To which the database grows."""
    sleepers: int
    is_profiled: bool
