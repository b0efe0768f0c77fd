"""How a run begins and how it ends, as an execution tells the engine, and what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from durable_endpoints.protocol.ops import StepRecord


class NewRun(NamedTuple):
    """A run to be registered: what is stored once and never changes."""

    id: str
    function_id: str
    version: str
    method: str
    path: str
    request: bytes
    """The packed original request, sealed by whoever registers the run; opaque to the engine."""
    root_path: str = ""
    retries: int = 3
    max_runtime: int | None = None
    omit_request_body: bool = False
    elapsed: int = 0
    """How long before its registration the request began, in milliseconds."""
    key: str | None = None
    """The caller's Idempotency-Key, unique among the runs that are kept."""
    key_scope: str = ""
    """A digest of who the caller is: only they may repeat the key."""
    fingerprint: str = ""
    """A digest of the request: a repeat of the key must be a repeat of the request."""
    labels: bytes | None = None
    app: str = ""
    """Whose run it is, where one engine serves several applications: the application's name, or the
    origin (`https://…`) of one that the engine calls back over HTTP. Empty in an engine of its own.
    """


class Complete(NamedTuple):
    """The handler's response exists."""

    status_code: int
    response: bytes | None
    """The response as the engine keeps it: sealed, for an engine in this process."""
    omitted: str = ""
    """Why there is none although there was one: `too_large`, `not_kept`; or empty."""
    until_delivered: bool = False
    """Keep it only until somebody has it."""
    omit_request_body: bool = False


class Fail(NamedTuple):
    """The handler failed for good, with what the application answered, if it answered."""

    reason: str
    error: bytes | None
    status_code: int | None = None
    response: bytes | None = None
    until_delivered: bool = False
    omit_request_body: bool = False


class Listener(Protocol):
    """An execution, as the engine sees it. It is told on its own event loop."""

    def resolved(self, step: StepRecord) -> bool:
        """An open step was resolved, or its retry is due. Returns whether the handler will see it
        in this execution; if not, another execution follows at once."""
        ...

    def stopped(self, reason: str) -> None:
        """The run is `cancelled`, `timed_out` or `lost`: nothing more will be written."""
        ...
