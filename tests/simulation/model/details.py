"""What programs leave open, and a handler has to decide: here by the numbers that are in them, so
that each execution decides the same, and the checker knows."""

from __future__ import annotations

from tests.simulation.programs import Program, Send, Sleep, Step

ELAPSED = 2
"""Milliseconds that a request has taken when its run is registered."""


def delay_of(step: Step) -> int | None:
    """How many milliseconds a step wants to wait for its next try; None for the engine's choice."""
    return None if step.value % 4 else 100 * step.value


def has_instant(sleep: Sleep) -> bool:
    """Whether a sleep says until when it lasts, and not for how long."""
    return sleep.name[-1] in "13579"


def stamp_of(send: Send) -> int | None:
    """The time that the sender of an event gives it, if any."""
    return send.number if send.number % 2 else None


def omits_request(program: Program) -> bool:
    """Whether the request goes when the run ends, as the endpoint wants."""
    return program.retries == 1


def omits_request_at_the_end(program: Program) -> bool:
    """Whether it goes because the handler, in the meantime, wants that."""
    return program.retries == 2
