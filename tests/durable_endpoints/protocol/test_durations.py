from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from durable_endpoints.protocol.durations import parse_duration, parse_instant


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [
        ("250ms", 250),
        ("30s", 30_000),
        ("1.5s", 1_500),
        ("90m", 5_400_000),
        ("1h30m", 5_400_000),
        ("2d", 172_800_000),
        ("1w", 604_800_000),
        ("1d2h30m10s", 95_410_000),
        (" 5S ", 5_000),
        ("PT30S", 30_000),
        ("P1DT2H", 93_600_000),
        ("P2W", 1_209_600_000),
        ("PT0.5S", 500),
        (timedelta(minutes=1, milliseconds=3), 60_003),
        (2, 2_000),
        (0.0015, 2),
        (0.1, 100),
        (0, 0),
    ],
)
def test_durations(value: str | float | timedelta, milliseconds: int) -> None:
    assert parse_duration(value) == milliseconds


@pytest.mark.parametrize(
    "value",
    [
        *("", "abc", "30", "-5s", "5 s 3", "1mo", "P", "PT", "s", "1h-5m", "1e3s", -1, -0.5),
        *(float("nan"), float("inf"), timedelta(seconds=-1)),
    ],
)
def test_junk_is_an_error(value: object) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, True, b"5s", [1]])
def test_other_types_are_an_error(value: object) -> None:
    with pytest.raises(TypeError, match="not a duration"):
        parse_duration(value)  # type: ignore[arg-type]


def test_instants() -> None:
    assert parse_instant(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)) == 1_000
    assert parse_instant(datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))) == 0
    assert parse_instant("1970-01-01T00:00:01.5Z") == 1_500
    assert parse_instant("1970-01-01T02:00:00+02:00") == 0


@pytest.mark.parametrize("value", ["tomorrow", "2026-01-01T00:00:00", datetime(2026, 1, 1), ""])
def test_an_instant_without_a_zone_is_an_error(value: datetime | str) -> None:
    with pytest.raises(ValueError):
        parse_instant(value)
