"""Calls of a server from a process that runs no application: a script, a cron job. They block."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from durable_endpoints.engines.remote.dialing import PASSING, REFUSED_KEY, Keys, is_local
from durable_endpoints.errors import ConfigurationError, StepValueError, StorageError
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints.settings import Settings

_FIRST_PAUSE = 0.1
_NO_KEY = "NO_EVENT_KEY_SET"
"""What stands in the path where no event key is set, as in Inngest's SDKs."""


def post_event(settings: Settings, event: NewEvent) -> None:
    """Send an event. Returns once it is on the server's disk.

    Raises `ConfigurationError` if the server refuses the key, `StepValueError` for an event that it
    does not take, and `StorageError` if it does not answer within `server_timeout`.
    """
    body: dict[str, Any] = {
        "id": event.id,
        "name": event.name,
        "data": orjson.Fragment(event.data),
    }
    if event.ts is not None:
        body["ts"] = event.ts
    path = f"/e/{quote(settings.event_key or _NO_KEY, safe='')}"
    answer = _post(settings, path, orjson.dumps(body), "event key, or the signing key")
    if answer.status_code >= 400:
        raise StepValueError(f"the server refuses event {event.name!r}: {_reason(answer)}")


def post_signal(settings: Settings, name: str, data: bytes) -> bool:
    """Send a signal. Returns whether a run has it, once that is on the server's disk.

    Raises as `post_event` does.
    """
    body = orjson.dumps({"signal": name, "data": orjson.Fragment(data)})
    answer = _post(settings, "/v1/signals", body, "signing key")
    if answer.status_code == 404:
        return False
    if answer.status_code >= 400:
        raise StepValueError(f"the server refuses signal {name!r}: {_reason(answer)}")
    return True


def _post(settings: Settings, path: str, body: bytes, key: str) -> httpx.Response:
    """POST until there is an answer. An event or a signal may be sent twice by that: an event
    counts once, by its id."""
    url = settings.server_url or ""
    give_up_at = time.monotonic() + settings.server_timeout / 1_000
    keys, pause, trouble = Keys(settings), _FIRST_PAUSE, ""
    headers = {"Content-Type": "application/json"}
    with httpx.Client(
        timeout=settings.server_timeout / 1_000, trust_env=not is_local(url)
    ) as client:
        while True:
            try:
                answer = _try_keys(client, url + path, body, headers, keys)
            except httpx.HTTPError as error:
                trouble = str(error) or type(error).__name__
            else:
                if answer.status_code in REFUSED_KEY:
                    raise ConfigurationError(
                        f"the server {url} refuses the {key}: set DURABLE_ENDPOINTS_EVENT_KEY or "
                        "DURABLE_ENDPOINTS_SIGNING_KEY to one of its own"
                    )
                if answer.status_code < 500 and answer.status_code not in PASSING:
                    return answer
                trouble = f"it answers {answer.status_code}"
            if time.monotonic() + pause > give_up_at:
                raise StorageError(f"the server {url} does not take it: {trouble}")
            time.sleep(pause * (0.5 + random.random()))
            pause *= 2


def _try_keys(
    client: httpx.Client, url: str, body: bytes, headers: Mapping[str, str], keys: Keys
) -> httpx.Response:
    answer = client.post(url, content=body, headers={**headers, **keys.headers()})
    for _ in keys.tries()[1:]:
        if answer.status_code not in REFUSED_KEY:
            break
        keys.turn()
        answer = client.post(url, content=body, headers={**headers, **keys.headers()})
    return answer


def _reason(answer: httpx.Response) -> str:
    try:
        error = answer.json().get("error")
    except (ValueError, AttributeError):
        error = None
    return str(error or f"it answers {answer.status_code}")
