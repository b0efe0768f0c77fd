"""What the engine knows of a run, an event and a wait. Plain values; times are epoch ms (UTC)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import orjson

from durable_endpoints.protocol.ops import Alternative, StepKind, StepRecord
from durable_endpoints.protocol.step_ids import StepId


class Status(IntEnum):
    """Where a run stands. The numbers are stored, and a fence is a set of them as bits."""

    RUNNING = 1
    """An execution holds the lease of the current generation and alone may advance the run."""
    WAITING = 2
    """Suspended: sleeps, waits or retries are open, and the first to be resolved wakes it."""
    READY = 3
    """Something was resolved, or an execution was lost or gave up: it wants a new execution."""
    PARKED = 4
    """It took its process down too often. It stays until somebody says `retry`."""
    COMPLETED = 5
    FAILED = 6
    CANCELLED = 7

    @property
    def is_final(self) -> bool:
        return self >= Status.COMPLETED

    @property
    def label(self) -> str:
        return self.name.lower()


class Run(NamedTuple):
    """The part of a run that decides what may happen to it next."""

    id: str
    function_id: str
    status: Status
    generation: int
    """The fencing number: it grows with every execution, and with every resolution while none
    runs, and a write made for an older one is refused."""
    owner: str
    """The process that holds the lease, or an empty string."""
    lease_until: int | None
    """When the lease ends by itself; None for a lease that ends only with its process."""
    began_at: int
    deadline: int | None
    """When the run fails as timed out, whatever it is doing (`max_runtime`)."""
    ready_at: int | None
    ended_at: int | None
    reason: str
    """Why it is in this state, where the state alone does not say: `timed_out`, `released` …"""
    interruptions: int
    """Executions that vanished since one last ended by itself."""
    lone_interruptions: int
    """Those of them that vanished while the run was in quarantine and ran alone."""
    omit_request_body: bool
    """The stored request goes when the run ends."""
    parent_run: str | None
    """The run that invoked it, and waits for its end."""
    parent_step: str | None
    """The hash of the step by which it did."""
    depth: int
    """How many runs are above it: 0 for one that a request began."""
    steps: int
    memo_bytes: int
    last_order: int

    def with_usage(self, steps: int, memo_bytes: int, last_order: int) -> Run:
        """The same run with other counts. Every step does this, so it is made cheap: the counts
        are the last three fields."""
        return tuple.__new__(Run, (*self[:-3], steps, memo_bytes, last_order))


class Stream(NamedTuple):
    """What the next addition to a run's stream log needs to know of it."""

    tail: int = 0
    """The last position."""
    size: int = 0
    """What its chunks weigh: their bytes, and some for each frame."""
    open: Mapping[str, int] = {}
    """The steps with chunks that are neither committed nor rolled back, and where these begin."""
    outside: int = 0
    """How many chunks pushed outside steps are in the log: a replay pushes them again."""
    outside_committed: int = 0
    """How many of them are committed."""
    handed_over: int | None = None
    """The last position of the execution that the client's own request drove, once it has left:
    where a client goes on that has read that one's stream to its end."""
    is_wary: bool = False
    """Whether readers may hold chunks that a loss of power has taken from the log."""


class Event(NamedTuple):
    """An event as received. `received_at` is the engine's clock; `ts` the sender's."""

    id: str
    name: str
    data: bytes
    ts: int
    received_at: int
    internal_id: str = ""
    """The engine's own id of it, a ULID; empty where `id` is that."""
    extra: bytes = b"{}"
    """What came with the data, as a JSON object: `user` and `v`, if anything."""

    def as_json(self) -> bytes:
        """The event as a waiting handler gets it."""
        head = orjson.dumps({"name": self.name, "id": self.id, "ts": self.ts})
        more = b"" if self.extra == b"{}" else b"," + self.extra[1:-1]
        return head[:-1] + more + b',"data":' + self.data + b"}"


class Wait(NamedTuple):
    """One way in which an open step can be resolved by an event."""

    run_id: str
    step: StepId
    kind: StepKind
    alternative: Alternative
    deadline: int


class Match(NamedTuple):
    """An open wait that an event may resolve, with the run and the step that opened it."""

    run: Run
    step: StepRecord
    wait: Wait


class Policy(NamedTuple):
    """The numbers that the rules go by. Sizes in bytes, times in milliseconds."""

    max_steps: int = 10_000
    max_result: int = 4 * 1024 * 1024
    max_memo: int = 32 * 1024 * 1024
    max_stream: int = 64 * 1024 * 1024
    max_wait: int = 366 * 86_400_000
    max_depth: int = 32
    """Runs that may be below each other, each invoked by the one above."""
    retry_base: int = 1_000
    retry_factor: float = 2.0
    retry_cap: int = 600_000
    retry_jitter: float = 0.2
    quarantine_after: int = 3
    park_after: int = 3
    event_retention: int = 24 * 3_600_000
    run_retention: int = 7 * 86_400_000
