"""Looking for the few runs that a filter passes, among many."""

from __future__ import annotations

from typing import Any

import pytest

from durable_endpoints.protocol.runs import NewRun
from durable_endpoints_server import listing
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.engine.transitions import register
from durable_endpoints_server.listing import newest_runs
from durable_endpoints_server.store.base import RunPage
from durable_endpoints_server.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

AT_ONCE = 50
ALL = list(Status)


class CountingStore(MemoryStore):
    """The oldest of its 300 runs is of a rare endpoint. It notes how large each portion was."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[int] = []
        for number in range(300):
            function = "GET /rare" if number == 0 else "GET /x"
            new = NewRun(f"r{number:03}", function, "", "GET", "/x", b"")
            self.apply(register(new, "me", None, 0).change)

    async def list_runs(self, *arguments: Any) -> RunPage:
        self.windows.append(arguments[-1])
        return await super().list_runs(*arguments)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> CountingStore:
    monkeypatch.setattr(listing, "LISTED_AT_ONCE", AT_ONCE)
    return CountingStore()


def ids(page: RunPage) -> list[str]:
    return [line.run.id for line in page.lines]


async def test_a_list_of_all_runs_looks_at_no_more_than_it_shows(store: CountingStore) -> None:
    page = await newest_runs(store, ALL, None, 3, None, 5.0)
    assert (ids(page), page.next) == (["r299", "r298", "r297"], "r297")
    assert store.windows == [3]


async def test_a_rare_run_is_found_behind_many_in_portions(store: CountingStore) -> None:
    page = await newest_runs(store, ALL, "GET /rare", 3, None, 60.0)
    assert (ids(page), page.next) == (["r000"], None)
    assert store.windows == [3, 30, *[AT_ONCE] * 6]


async def test_looking_stops_when_patience_is_over_and_can_go_on(store: CountingStore) -> None:
    page = await newest_runs(store, ALL, "GET /rare", 20, None, 0.0)
    assert (ids(page), page.next) == ([], "r280")
    found: list[str] = []
    while page.next is not None:
        page = await newest_runs(store, ALL, "GET /rare", 20, page.next, 0.0)
        found += ids(page)
    assert found == ["r000"]


async def test_a_page_that_is_full_says_where_the_next_one_begins(store: CountingStore) -> None:
    first = await newest_runs(store, ALL, "GET /x", 70, None, 60.0)
    second = await newest_runs(store, ALL, "GET /x", 70, first.next, 60.0)
    assert ids(first) + ids(second) == [f"r{number:03}" for number in range(299, 159, -1)]
