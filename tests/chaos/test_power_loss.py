"""A disk that loses its power at any moment: what was acknowledged is there, and all goes on.

A real workload, on the real engine and SQLite, is recorded operation by operation; the disk that is
left after a loss is made from that. `python -m tests.chaos.disk` does it as often as you like.
"""

from __future__ import annotations

import random
from pathlib import Path
from unittest.mock import patch

import pytest

from durable_endpoints_server.store.sqlite import SqliteStore
from tests.chaos.disk.checking import Lost, Recording, check, record
from tests.chaos.disk.workload import Seen

pytestmark = pytest.mark.anyio

_NOTHING = Lost(answers=0, bodies=0, events=0, chunks=0)


def any_moments(recording: Recording, count: int) -> list[int]:
    points = range(1, len(recording.operations) + 1)
    return sorted(random.Random(7).choices(points, k=count))


def answered(seen: Seen) -> list[int]:
    """The moments at which clients had their answers."""
    return sorted({answer.at for answer in seen.answers})


async def test_a_loss_of_power_costs_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    recording = await record(tmp_path, "full")
    assert set(await check(recording, any_moments(recording, 30), seed=1)) == {_NOTHING}


async def test_nothing_that_a_client_has_seen_waits_for_the_disk(tmp_path: Path) -> None:
    """The worst disk, at the worst moments: nothing that was not synced is left."""
    recording = await record(tmp_path, "full")
    lost = await check(recording, answered(recording.seen), seed=2, fate=0.0)
    assert set(lost) == {_NOTHING}


async def test_a_loss_of_power_costs_a_server_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    recording = await record(tmp_path, "full", "server")
    assert set(await check(recording, any_moments(recording, 6), seed=6)) == {_NOTHING}


async def test_with_synchronous_normal_the_last_commits_may_be_lost_but_nothing_breaks(
    tmp_path: Path,
) -> None:
    """What is left is a database as it was at an earlier moment, from which everything goes on."""
    recording = await record(tmp_path, "normal")
    await check(recording, any_moments(recording, 6), seed=3)
    lost = await check(recording, answered(recording.seen), seed=4, fate=0.0)
    assert sum(one.answers for one in lost) > 0


async def test_a_store_that_acknowledges_too_early_is_found_out(tmp_path: Path) -> None:
    """What these tests are worth."""

    def never(store: SqliteStore, synchronous: str) -> None:
        store._writer.execute("pragma synchronous = normal")

    with patch.object(SqliteStore, "_set_synchronous", never):
        recording = await record(tmp_path, "full")
    with pytest.raises(AssertionError):
        lost = await check(recording, answered(recording.seen), seed=5, fate=0.0)
        assert set(lost) == {_NOTHING}
