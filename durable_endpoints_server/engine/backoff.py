"""How long to wait before a failed step is tried again."""

from __future__ import annotations

from durable_endpoints_server.engine.model import Policy


def backoff(attempt: int, policy: Policy, chance: float) -> int:
    """Return the wait in milliseconds after the `attempt`-th try (from 1) failed.

    Exponential with a cap, spread by the jitter: `chance` is a random number in [0, 1) that the
    caller drew, so that steps which failed together do not come back together.
    """
    exponent = min(attempt - 1, 64)
    wait = min(policy.retry_base * policy.retry_factor**exponent, policy.retry_cap)
    return max(0, round(wait * (1 + policy.retry_jitter * (2 * chance - 1))))
