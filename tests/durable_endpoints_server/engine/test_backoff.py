from __future__ import annotations

from durable_endpoints_server.engine.backoff import backoff
from durable_endpoints_server.engine.model import Policy


def test_it_doubles_up_to_a_cap() -> None:
    waits = [backoff(attempt, Policy(), 0.5) for attempt in range(1, 13)]
    assert waits[:4] == [1_000, 2_000, 4_000, 8_000]
    assert waits[-1] == 600_000
    assert backoff(10**6, Policy(), 0.5) == 600_000


def test_the_jitter_spreads_by_a_fifth_either_way() -> None:
    assert backoff(1, Policy(), 0.0) == 800
    assert backoff(1, Policy(), 0.999_999) == 1_200
    assert backoff(3, Policy(retry_jitter=0), 0.0) == 4_000


def test_settings() -> None:
    policy = Policy(retry_base=10, retry_factor=3, retry_cap=50, retry_jitter=0)
    assert [backoff(n, policy, 0) for n in (1, 2, 3)] == [10, 30, 50]
