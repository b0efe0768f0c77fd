"""The client of durable streams: chunks as they come, and the response, over any number of cuts.

    response = await fetch_with_stream(url, method="POST", json=order, on_data=show)

or, as an iterator:

    async with open_stream(url, method="POST", json=order) as stream:
        async for event in stream:
            transcript.feed(event)
    print(stream.response.json(), transcript.text)

Both exist in a blocking form. None needs anything of an application but its URL.

And for what reports runs without `@endpoint`, `CheckpointClient` and `CheckpointClientSync`.
"""

from durable_endpoints.checkpoint_client import (
    ApiResult,
    BadCheckpointError,
    CheckpointClient,
    CheckpointError,
    CheckpointRefusedError,
    CheckpointRun,
    RunEvent,
    ServerUnavailableError,
    UnknownRunError,
)
from durable_endpoints.client.blocking import (
    DurableStreamSync,
    fetch_with_stream_sync,
    open_stream_sync,
)
from durable_endpoints.client.cancel import cancel_run, cancel_run_sync
from durable_endpoints.client.checkpoints import CheckpointClientSync
from durable_endpoints.client.errors import StreamError
from durable_endpoints.client.events import (
    Chunk,
    Commit,
    Log,
    Metadata,
    Progress,
    Rollback,
    StreamEvent,
)
from durable_endpoints.client.pacing import Pacing
from durable_endpoints.client.stream import DurableStream, fetch_with_stream, open_stream
from durable_endpoints.client.transcript import Transcript

__all__ = [
    "ApiResult",
    "BadCheckpointError",
    "CheckpointClient",
    "CheckpointClientSync",
    "CheckpointError",
    "CheckpointRefusedError",
    "CheckpointRun",
    "Chunk",
    "Commit",
    "DurableStream",
    "DurableStreamSync",
    "Log",
    "Metadata",
    "Pacing",
    "Progress",
    "Rollback",
    "RunEvent",
    "ServerUnavailableError",
    "StreamError",
    "StreamEvent",
    "Transcript",
    "UnknownRunError",
    "cancel_run",
    "cancel_run_sync",
    "fetch_with_stream",
    "fetch_with_stream_sync",
    "open_stream",
    "open_stream_sync",
]
