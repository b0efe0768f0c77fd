"""What an event may be, wherever it comes from: a request, a script, the command line."""

from __future__ import annotations

MAX_NAME_LENGTH = 512
MAX_DATA = 3 * 1024 * 1024
"""Bytes of JSON; as in Inngest's event API."""
MAX_TS = 253_402_300_799_999
"""The end of the year 9999, in epoch milliseconds."""


SIGNAL = "signal:"
"""How the name begins of what ends a wait for a signal. No event has such a name."""


def check_event_name(name: object) -> None:
    """Raise `ValueError` for what cannot be an event's name."""
    _check_name("event", name)
    if str(name).startswith(SIGNAL):
        raise ValueError(
            f"the event name {name!r} begins with {SIGNAL!r}, which is kept for signals: give the "
            "event another name, or use send_signal and step.wait_for_signal"
        )


def check_signal(name: object, data: bytes = b"") -> None:
    """Raise `ValueError` for what cannot be a signal's name, or its data."""
    _check_name("signal", name)
    _check_data("signal", name, data)


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise ValueError(
            f"the {what} name {name!r} is not a printable text of 1 to {MAX_NAME_LENGTH} letters"
        )


def _check_data(what: str, name: object, data: bytes) -> None:
    if len(data) > MAX_DATA:
        raise ValueError(
            f"the data of {what} {name!r} has {len(data):,} bytes; {MAX_DATA:,} are allowed"
        )


def check_event(name: object, id: object, ts: object, data: bytes) -> None:
    """Raise `ValueError` for what cannot be an event. `id` and `ts` may be None, to be given."""
    check_event_name(name)
    is_text = isinstance(id, str) and 0 < len(id) <= MAX_NAME_LENGTH and id.isprintable()
    if id is not None and not is_text:
        raise ValueError(
            f"the event id {id!r} is not a printable text of 1 to {MAX_NAME_LENGTH} letters"
        )
    is_instant = isinstance(ts, int) and not isinstance(ts, bool) and 0 <= ts <= MAX_TS
    if ts is not None and not is_instant:
        raise ValueError(f"ts={ts!r}: give UTC epoch milliseconds as a whole number")
    _check_data("event", name, data)
