"""The boundaries: where a process may be killed or stopped, by name."""

from __future__ import annotations

from typing import Final, Literal

Mode = Literal["embedded", "server"]
Role = Literal["app", "server", "client"]

STORE: Final = (
    "before-write",
    "inside-write",
    "after-write",
    "before-acknowledgement",
    "after-acknowledgement",
    "before-sync",
)
"""The writing thread, before, in and after the commit of a batch; the event loop, before and after
it tells whoever waits for that; and the sync that follows what was written in a relaxed way."""

ANSWERING: Final = (
    "request-read",
    "before-answer",
    "answer-begun",
    "mid-answer",
    "mid-stream",
    "before-last-byte",
    "after-last-byte",
)
"""HTTP, on the side that answers. `before-last-byte`: all but that one are on the socket."""

WIRE: Final = ("before-message", "after-message", "message-arrived", "message-handled")
"""The connection between an application and a server: what is sent, and what is received."""

BODY: Final = ("body-begun", "body-done")
"""A step's own code."""

ASKING: Final = (
    "before-request",
    "mid-request",
    "request-sent",
    "answer-arrives",
    "answer-complete",
    "answer-kept",
    "frame-arrives",
    "frame-kept",
)
"""HTTP, on the side that asks: `kept` is written down where the next life of the client finds
it."""

BOUNDARIES: Final = (*STORE, *ANSWERING, *WIRE, *BODY, *ASKING)

OF: Final[dict[tuple[Mode, Role], tuple[str, ...]]] = {
    ("embedded", "app"): (*STORE, *ANSWERING, *BODY),
    ("embedded", "client"): ASKING,
    ("server", "app"): (*WIRE, *ANSWERING, *BODY),
    ("server", "server"): (
        *STORE,
        *WIRE,
        "request-read",
        "before-answer",
        "answer-begun",
        "before-last-byte",
        "after-last-byte",
    ),
    ("server", "client"): ASKING,
}
"""Which boundaries each process has."""
