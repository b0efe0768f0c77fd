"""Re-entry over HTTP: the original request of a run, sent into its application again
(Inngest SDK protocol, "call requests"). It is signed twice: as Inngest's SDKs verify it, and over
method, path, run, time and body as well, because the first signature is good for any run.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

import httpx
from ulid import ULID

from durable_endpoints.protocol import signing
from durable_endpoints_server.inngest import results
from durable_endpoints_server.inngest.replies import Lost, Reply, Threw, read_reply
from durable_endpoints_server.inngest.trigger import Trigger

MAX_REPLY: Final = 8 * 1024 * 1024
"""Bytes."""
_PATIENCE: Final = 2 * 3_600.0
"""Seconds that a step may take."""
_CONNECT: Final = 10.0
_KEEP_ALIVE: Final = 3.0
"""Seconds. Node's server closes a connection that is idle for 5."""


class Call(NamedTuple):
    """One re-entry."""

    run_id: str
    generation: int
    trigger: Trigger
    step: str | None
    """The only step that shall be run, by its hash."""
    plans_only: bool
    """No step shall be run because it is the only one that was found."""


class Caller:
    """Calls applications."""

    def __init__(self, key: str | None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`key` is the signing key; None in development. `transport` replaces the network."""
        self._key = key
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    async def call(self, call: Call, now: int) -> Reply:
        """Send a request in, and return what came of it; `now` in epoch milliseconds."""
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._send(call, now)
        except TimeoutError:
            return _failed(f"the application did not answer within {_PATIENCE / 3_600:g} hours")
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Lost(f"it cannot be reached ({error or type(error).__name__})")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Lost(f"the connection broke ({error or type(error).__name__})")

    async def close(self) -> None:
        """Let go of the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _send(self, call: Call, now: int) -> Reply:
        trigger = call.trigger
        url = httpx.URL(trigger.origin).copy_with(raw_path=trigger.target.encode("ascii"))
        async with self._open().stream(
            trigger.method, url, headers=self._headers(call), content=trigger.body
        ) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                return _failed("the application's reply is compressed, which it was asked not to")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_REPLY:
                    return _failed(f"the application's reply has more than {MAX_REPLY:,} bytes")
            return read_reply(response.status_code, response.headers, bytes(body), now)

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            # No proxies and no passwords from the environment: the origins are the operator's own.
            # No redirects: they would lead to where nobody has said that calls may go.
            self._client = httpx.AsyncClient(
                transport=self._transport,
                timeout=httpx.Timeout(None, connect=_CONNECT),
                limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEP_ALIVE),
                follow_redirects=False,
                trust_env=False,
            )
        return self._client

    def _headers(self, call: Call) -> dict[str, str]:
        trigger, now = call.trigger, int(time.time())
        headers = {
            "accept-encoding": "identity",
            "content-type": trigger.content_type or "application/json",
            "user-agent": "durable-endpoints",
            "x-run-id": call.run_id,
            "x-request-id": str(ULID()),
            "x-inngest-req-version": "2",
            "x-inngest-generation-id": str(call.generation),
            signing.SIGNATURE_HEADER: "",
        }
        if call.step is not None:
            headers["x-inngest-step-id"] = call.step
        if call.plans_only:
            headers["x-inngest-force-step-plan"] = "true"
        if self._key is not None:
            signed = _signed_body(trigger)
            headers[signing.SIGNATURE_HEADER] = signing.sign(self._key, signed, now)
            headers[signing.REQUEST_SIGNATURE_HEADER] = signing.sign_request(
                self._key, trigger.method, trigger.target, call.run_id, trigger.body, now
            )
        return headers


def _signed_body(trigger: Trigger) -> bytes:
    """What Inngest's SDK for JavaScript verifies: the canonical JSON of a body, of two methods."""
    if trigger.method not in ("POST", "PUT"):
        return b""
    return signing.canonical(trigger.body)


def _failed(problem: str) -> Threw:
    return Threw(results.error("ReplyError", problem), is_final=False)
