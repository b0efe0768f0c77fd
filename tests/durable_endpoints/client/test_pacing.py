from __future__ import annotations

import math

import pytest

from durable_endpoints.client.pacing import Pacing, seconds_to_wait

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


def test_full_jitter_up_to_a_limit_that_doubles() -> None:
    most = Pacing(random=lambda: 1.0)
    assert [most.delay(n) for n in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert most.delay(100_000) == 5.0
    least = Pacing(random=lambda: 0.0)
    assert {least.delay(n) for n in range(8)} == {0.0}


def test_a_server_may_ask_for_more_but_not_for_ever() -> None:
    most = Pacing(random=lambda: 1.0)
    assert most.delay(0, 2.0) == 2.0
    assert most.delay(7, 2.0) == 5.0
    assert most.delay(0, math.inf) == 60.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("7", 7.0),
        ("0", 0.0),
        ("9" * 5000, math.inf),
        ("Sun, 06 Nov 1994 08:49:57 GMT", 20.0),
        ("Sun, 06 Nov 1994 08:49:17 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:49:57 -0000", 0.0),
        ("soon", 0.0),
        ("-1", 0.0),
        ("²", 0.0),
        ("", 0.0),
    ],
)
def test_retry_after(header: str | None, seconds: float) -> None:
    assert seconds_to_wait(header, DATE) == seconds


def test_a_date_without_the_servers_own_says_nothing() -> None:
    assert seconds_to_wait(DATE, None) == 0.0
