"""Durations and instants as Inngest's SDKs write them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any, Final

from durable_endpoints.protocol.durations import parse_duration

_SMALL: Final = {"us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ns": 1e-6}
_SMALL_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(us|µs|μs|ns)")


def milliseconds(value: Any, now: int) -> int:
    """How long to wait from `now` on: for a duration (`1d2h30m10s`, as Go's str2duration reads it,
    or ISO 8601), or until an instant (RFC 3339; UTC where it names no zone). Never negative.

    Raises `ValueError` for anything else.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not text:
        raise ValueError(f"{value!r} is neither a duration nor a time")
    instant = _instant(text)
    if instant is not None:
        return max(0, instant - now)
    sign = text.startswith("-")
    wait = _duration(text.lstrip("+-"))
    return 0 if sign else wait


def _instant(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return math.ceil(moment.timestamp() * 1_000)
    except (OverflowError, ValueError):
        return None


def _duration(text: str) -> int:
    small = math.fsum(float(n) * _SMALL[unit] for n, unit in _SMALL_PART.findall(text))
    rest = _SMALL_PART.sub("", text)
    return (parse_duration(rest) if rest else 0) + math.ceil(small)
