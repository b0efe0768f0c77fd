"""The garbage collector of a server, as docs/performance.md recommends it."""

from __future__ import annotations

import gc

THRESHOLD = 50_000
"""New objects until the collector looks at them; Python's own threshold is 700."""


def settle() -> None:
    """Let the collector pass over everything that is there, and look more rarely at the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD)
