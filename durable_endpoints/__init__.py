"""Durable HTTP endpoints for Starlette and FastAPI.

Decorate a handler with `@endpoint`, call its work through `step`, and add the middleware: from then
on every accepted request ends with the handler's own answer, whatever happens to the process.
"""

from typing import TYPE_CHECKING, Any

from durable_endpoints.encryption import StepEncryption
from durable_endpoints.endpoint import configure, endpoint
from durable_endpoints.endpoint_app import endpoint_app
from durable_endpoints.errors import (
    CompensationError,
    ConfigurationError,
    DurableEndpointsError,
    EngineClosedError,
    EngineError,
    FetchError,
    LimitError,
    LostRunError,
    NestedStepError,
    NonRetriableError,
    NotInRunError,
    RememberedError,
    RetryAfterError,
    StepError,
    StepIdError,
    StepValueError,
    StorageError,
    TruncatedStreamError,
    UsageError,
)
from durable_endpoints.events import Event
from durable_endpoints.hooks import Hook
from durable_endpoints.middleware import DurableEndpointsMiddleware
from durable_endpoints.proxy import endpoint_proxy
from durable_endpoints.remember import remember
from durable_endpoints.saga import Saga
from durable_endpoints.sending import send_event
from durable_endpoints.signals import Signal, send_signal
from durable_endpoints.step import step
from durable_endpoints.stream import stream

if TYPE_CHECKING:
    from durable_endpoints.checkpoint_client import CheckpointClient
    from durable_endpoints.client import fetch_with_stream

__all__ = [
    "CheckpointClient",
    "CompensationError",
    "ConfigurationError",
    "DurableEndpointsError",
    "DurableEndpointsMiddleware",
    "EngineClosedError",
    "EngineError",
    "Event",
    "FetchError",
    "Hook",
    "LimitError",
    "LostRunError",
    "NestedStepError",
    "NonRetriableError",
    "NotInRunError",
    "RememberedError",
    "RetryAfterError",
    "Saga",
    "Signal",
    "StepEncryption",
    "StepError",
    "StepIdError",
    "StepValueError",
    "StorageError",
    "TruncatedStreamError",
    "UsageError",
    "configure",
    "endpoint",
    "endpoint_app",
    "endpoint_proxy",
    "fetch_with_stream",
    "remember",
    "send_event",
    "send_signal",
    "step",
    "stream",
]


def __getattr__(name: str) -> Any:
    """Clients are imported when they are used: a server needs none."""
    if name == "CheckpointClient":
        from durable_endpoints.checkpoint_client import CheckpointClient

        return CheckpointClient
    if name == "fetch_with_stream":
        from durable_endpoints.client import fetch_with_stream

        return fetch_with_stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
