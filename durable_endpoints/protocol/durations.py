"""Durations and points in time, as people write them, turned into milliseconds."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta

Duration = str | int | float | timedelta
"""`"30s"`, `"1h30m"`, `"250ms"`, ISO 8601 (`"PT30S"`), a `timedelta`, or seconds."""

_UNITS = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_COMPACT = re.compile(rf"(?:{_PART.pattern})+")
_ISO = re.compile(
    r"P(?:(?P<w>\d+(?:\.\d+)?)W)?(?:(?P<d>\d+(?:\.\d+)?)D)?"
    r"(?:T(?:(?P<h>\d+(?:\.\d+)?)H)?(?:(?P<m>\d+(?:\.\d+)?)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?"
)
_HINT = 'write "30s", "1h30m", "250ms", "PT30S", a timedelta, or a number of seconds'


_INSTANT_HINT = (
    'give a datetime with a time zone, or ISO 8601 text with one, as in "2027-01-04T09:00:00+01:00"'
)


def parse_duration(value: Duration) -> int:
    """Return `value` in whole milliseconds, rounded up.

    Raises `ValueError` for anything that is not a duration (negative, NaN, a bare number in a
    string, junk), and `TypeError` for a type that cannot be one.
    """
    if isinstance(value, bool):
        raise TypeError(f"{value!r} is not a duration: {_HINT}")
    if isinstance(value, timedelta):
        milliseconds = value / timedelta(milliseconds=1)
    elif isinstance(value, int | float):
        milliseconds = value * 1_000
    elif isinstance(value, str):
        milliseconds = _parse_text(value)
    else:
        raise TypeError(f"{value!r} is not a duration: {_HINT}")
    if not math.isfinite(milliseconds) or milliseconds < 0:
        raise ValueError(f"{value!r} is not a duration: it must be finite and not negative")
    return math.ceil(round(milliseconds, 6))


def _parse_text(text: str) -> float:
    compact = text.strip().lower()
    if _COMPACT.fullmatch(compact):
        return math.fsum(float(number) * _UNITS[unit] for number, unit in _PART.findall(compact))
    iso = _ISO.fullmatch(text.strip().upper())
    parts = iso.groupdict() if iso is not None else {}
    if any(parts.values()) and not text.strip().upper().endswith("T"):
        return math.fsum(float(n) * _UNITS[unit] for unit, n in parts.items() if n is not None)
    raise ValueError(f"{text!r} is not a duration: {_HINT}")


def parse_instant(value: datetime | str) -> int:
    """Return a point in time as UTC epoch milliseconds, rounded up.

    `value` is a `datetime` with a time zone, or ISO 8601 text with one. Raises `ValueError` for a
    time without a zone, because the machine that resumes a run may stand in another one.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a time: {_INSTANT_HINT}") from None
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} is not a point in time: {_INSTANT_HINT}")
    if value.tzinfo is None:
        raise ValueError(f"{value.isoformat()} has no time zone: {_INSTANT_HINT}")
    return math.ceil(round(value.timestamp() * 1_000, 3))
