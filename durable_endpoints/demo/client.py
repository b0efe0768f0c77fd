"""The demo's client: follows redirects, and asks again with its key when the connection breaks."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio
import httpx

from durable_endpoints.demo.screen import Screen


@dataclass
class Visit:
    """What a client saw on the way to its answer."""

    statuses: list[int] = field(default_factory=list)
    broken: int = 0
    """Connections that broke under it."""
    response: httpx.Response | None = None


async def ask(
    client: httpx.AsyncClient, url: str, content: bytes, key: str, screen: Screen, visit: Visit
) -> None:
    """POST with an Idempotency-Key until the answer is there; fills `visit` as it goes.

    A broken connection while it waits at the redirect's target is met by asking there again, one
    before the redirect by repeating the POST with the same key.
    """
    method, target = "POST", url
    while True:
        try:
            if method == "POST":
                size = f"{len(content):,} bytes"
                screen.say("client", f"POST {httpx.URL(target).path}  {size}, key {key}")
                headers = {"idempotency-key": key, "content-type": "text/plain; charset=utf-8"}
                response = await client.post(target, content=content, headers=headers)
            else:
                screen.say("client", f"GET {httpx.URL(target).path}  waits there")
                response = await client.get(target)
        except httpx.TransportError as error:
            visit.broken += 1
            screen.say("client", f"connection broken ({type(error).__name__})", "red")
            await _until_alive(client, url)
            continue
        visit.statuses.append(response.status_code)
        if response.next_request is None:
            visit.response = response
            colour = "green" if response.is_success else "red"
            screen.say("client", f"{_status(response)}: the handler's own answer", colour)
            return
        method, target = "GET", str(response.next_request.url)
        screen.say("client", f"{_status(response)}: wait at {response.next_request.url.path}")


async def _until_alive(client: httpx.AsyncClient, url: str) -> None:
    while True:
        try:
            await client.get(httpx.URL(url).join("/alive"))
            return
        except httpx.TransportError:
            await anyio.sleep(0.05)


def _status(response: httpx.Response) -> str:
    return f"{response.status_code} {response.reason_phrase}"
