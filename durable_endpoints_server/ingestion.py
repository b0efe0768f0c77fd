"""Events as they come in over HTTP: one or many, checked whole before any of them is received
(Inngest event API, `POST /e/{key}`).
"""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import orjson
from ulid import base32

from durable_endpoints.protocol.events import check_event
from durable_endpoints_server.engine.model import Event

MAX_EVENTS: Final = 5_000
"""Events in one request."""
_RESERVED: Final = "inngest/"
_FORM: Final = "application/x-www-form-urlencoded"
_OWN_FIELDS: Final = ("name", "id", "ts", "v", "data", "user")


class Seed(NamedTuple):
    """What the ids of events are made of, so that a request that is repeated repeats its ids."""

    at: int
    entropy: bytes

    def id_of(self, index: int) -> str:
        """The ULID of the event at this place, from 0 (Inngest SDKs: the last four bytes of the
        entropy are a number, to which the place is added, counted from 1)."""
        number = int.from_bytes(self.entropy[6:]) + index + 1
        entropy = self.entropy[:6] + (number % 2**32).to_bytes(4)
        return base32.encode(self.at.to_bytes(6) + entropy)


def read_seed(header: str | None, now: int) -> Seed:
    """The seed in `x-inngest-event-id-seed`, `<ms>,<base64 of 10 bytes>`, or a new one.

    Raises `ValueError` for one that is neither.
    """
    if header is None:
        return Seed(now, os.urandom(10))
    at, _, encoded = header.partition(",")
    try:
        entropy = b64decode(encoded, validate=True)
    except ValueError:
        entropy = b""
    if not (at.isascii() and at.isdecimal() and len(at) < 15 and len(entropy) == 10):
        raise ValueError(
            f"x-inngest-event-id-seed: {header!r} is not `<epoch ms>,<base64 of 10 bytes>`"
        )
    return Seed(int(at), entropy)


def read_events(body: bytes, content_type: str, seed: Seed, now: int) -> list[Event]:
    """The events in a request's body: one, or an array of them, or a form whose fields `name`,
    `id`, `ts` and `data` (JSON) are the event's own and whose others are its data.

    Raises `ValueError` for anything else.
    """
    found = _decoded(body, content_type)
    if not isinstance(found, list):
        return [_event(found, seed, 0, now)]
    if len(found) > MAX_EVENTS:
        raise ValueError(f"{len(found):,} events in one request; {MAX_EVENTS:,} are allowed")
    events: list[Event] = []
    for index, raw in enumerate(found):
        try:
            events.append(_event(raw, seed, index, now))
        except ValueError as error:
            raise ValueError(f"event {index + 1} of {len(found)}: {error}") from None
    return events


def _decoded(body: bytes, content_type: str) -> Any:
    # What `curl --data` sends calls itself a form, and is JSON.
    if content_type.partition(";")[0].strip().lower() == _FORM and body.lstrip()[:1] not in b"{[":
        return _from_form(body)
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {error}") from None


def _from_form(body: bytes) -> dict[str, Any]:
    try:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict"))
    except ValueError:
        raise ValueError("the form is not UTF-8") from None
    event: dict[str, Any] = {key: fields.pop(key) for key in _OWN_FIELDS if key in fields}
    for key in ("ts", "data", "user"):
        if key in event:
            try:
                event[key] = orjson.loads(event[key])
            except ValueError:
                raise ValueError(f"the form's field {key!r} is not JSON") from None
    if fields:
        event["data"] = {**fields, **_members(event.get("data"), "data")}
    return event


def _event(raw: Any, seed: Seed, index: int, now: int) -> Event:
    if not isinstance(raw, dict):
        raise ValueError("an event is a JSON object with a `name`, or an array of such")
    name, given_id, ts = raw.get("name"), raw.get("id"), _instant(raw.get("ts"))
    if name is None:
        raise ValueError("an event needs a `name`")
    if isinstance(name, str) and name.startswith(_RESERVED):
        raise ValueError(
            f"the event name {name!r}: those beginning with {_RESERVED!r} are reserved"
        )
    data = dict(_members(raw.get("data"), "data"))
    data.pop("_inngest", None)
    packed, extra = _packed(data, "data"), _packed(_extra(raw), "user")
    event_id = given_id if given_id not in (None, "") else None
    check_event(name, event_id, ts, packed + extra)
    internal_id = seed.id_of(index)
    if event_id is None:
        return Event(internal_id, name, packed, ts or now, now, "", extra)
    return Event(event_id, name, packed, ts or now, now, internal_id, extra)


def _instant(ts: Any) -> Any:
    """Some senders divide, so that a whole number of milliseconds comes as 1.0."""
    return int(ts) if isinstance(ts, float) and ts.is_integer() else ts


def _extra(raw: Mapping[str, Any]) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if user := _members(raw.get("user"), "user"):
        extra["user"] = user
    version = raw.get("v")
    if version is not None and not isinstance(version, str):
        raise ValueError(f"v={version!r} is not a text")
    if version:
        extra["v"] = version
    return extra


def _members(value: Any, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"an event's `{name}` is a JSON object")
    return value


def _packed(value: Mapping[str, Any], name: str) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise ValueError(f"an event's `{name}` cannot be kept: {error}") from None
