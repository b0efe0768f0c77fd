"""Cancelling a run by its URL."""

from __future__ import annotations

import httpx

from durable_endpoints.client.call import OWN_TIMEOUT, AsyncClient, SyncClient
from durable_endpoints.client.pacing import Pacing

_TIMEOUT = httpx.Timeout(OWN_TIMEOUT.connect, read=Pacing.answer_within)


async def cancel_run(run_url: str, client: AsyncClient | None = None) -> httpx.Response:
    """Cancel the run behind `run_url` (`DurableStream.run_url`) and return the server's answer.

    200: it is cancelled. 403: its endpoint does not allow it; `@endpoint(cancellable=True)` does.
    409: it has ended already. 401 and 404: the URL is not that of a run, or no longer.
    """
    if client is None:
        async with httpx.AsyncClient(timeout=_TIMEOUT) as own:
            return await cancel_run(run_url, own)
    response: httpx.Response = await client.request("DELETE", run_url, follow_redirects=True)
    return response


def cancel_run_sync(run_url: str, client: SyncClient | None = None) -> httpx.Response:
    """`cancel_run` that blocks."""
    if client is None:
        with httpx.Client(timeout=_TIMEOUT) as own:
            return cancel_run_sync(run_url, own)
    response: httpx.Response = client.request("DELETE", run_url, follow_redirects=True)
    return response
