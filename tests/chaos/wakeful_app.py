"""The tormented application, with timers that look at the clock more often: a step forward is
noticed at the next look."""

from durable_endpoints_server import clock

clock._LONGEST_NAP = 0.3

from tests.chaos.app import app  # noqa: E402

__all__ = ["app"]
