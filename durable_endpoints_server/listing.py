"""The newest runs that pass a filter, looked for in portions.

A filter that few runs pass (an endpoint that is rarely called) passes over millions. No question to
the store does that in one go: each looks at a part of them, and after some time the caller gets
what was found so far, and from where to go on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.base import LISTED_AT_ONCE, Reads, RunPage, RunSummary

_GROWTH = 10
"""How much larger a portion is than the one before it."""


async def newest_runs(
    store: Reads,
    statuses: Sequence[Status],
    function_id: str | None,
    limit: int,
    before: str | None,
    patience: float,
) -> RunPage:
    """Up to `limit` runs, as `Reads.list_runs` has them; fewer, and where to go on, if no more are
    found within `patience` seconds."""
    deadline = time.monotonic() + patience
    lines: list[RunSummary] = []
    window = limit  # which is enough where every run passes
    while True:
        window = min(window, LISTED_AT_ONCE)
        page = await store.list_runs(statuses, function_id, limit - len(lines), before, window)
        lines += page.lines
        if len(lines) == limit or page.next is None or time.monotonic() >= deadline:
            return RunPage(lines, page.next)
        before = page.next
        window *= _GROWTH
