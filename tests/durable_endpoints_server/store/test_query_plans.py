"""No statement gets slower because tables grow: what SQLite plans for each of them.

The server never gathers statistics (`analyze`), and without them the plan does not depend on what
is in the tables: the one for an empty database is the one for ten million runs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from durable_endpoints_server.store.sqlite import SqliteStore, _insert_statement
from durable_endpoints_server.store.sqlite_connection import add_views, connect, named

OF_ONE = re.compile(
    r"SEARCH \w+ (EXISTS )?USING (PRIMARY KEY|INTEGER PRIMARY KEY|(COVERING )?INDEX \w+) "
    r"\((run_id|id|rowid|idempotency_key|internal_id|parent_run)=\?.*\)( LEFT-JOIN)?"
)
"""What belongs to one run, or has one id."""
OF_NOTHING = re.compile(
    r"SCAN (CONSTANT ROW|\w+ VIRTUAL TABLE .*|\(subquery-\d+\)|candidates|chosen|paths|apps|looked)"
    r"|SEARCH requests"  # its smallest id
    r"|(CO-ROUTINE|MATERIALIZE|LIST SUBQUERY|(CORRELATED )?SCALAR SUBQUERY|USE TEMP B-TREE|SETUP"
    r"|COMPOUND QUERY|LEFT-MOST SUBQUERY|UNION ALL|RECURSIVE STEP|CREATE BLOOM FILTER|-- TRIGGER).*"
)
"""What the question itself brings along, or has chosen before."""

FIRST = "stops at the first row"
LIMITED = "stops at its limit"
OPEN = "an index of what is open, which ends with it"

SHARED = {
    ("running", "SEARCH runs USING INDEX runs_not_completed (status=?)"): OPEN,
    ("running_since", "SEARCH runs USING INDEX runs_not_completed (status=?)"): OPEN,
    ("ready", "SEARCH runs USING COVERING INDEX runs_ready"): FIRST,
    ("ready", "SEARCH runs USING COVERING INDEX runs_ready (app>?)"): FIRST,
    ("ready", "SEARCH runs USING COVERING INDEX runs_ready (app=?)"): LIMITED,
    ("due_steps", "SEARCH steps USING INDEX steps_due (due>? AND due<?)"): LIMITED,
    ("due_deadlines", "SEARCH runs USING INDEX runs_deadline (deadline>? AND deadline<?)"): LIMITED,
    ("next_due", "SEARCH steps USING COVERING INDEX steps_due (due>?)"): FIRST,
    ("next_due", "SEARCH runs USING INDEX runs_deadline (deadline>?)"): FIRST,
    ("wait_paths", "SEARCH waits USING COVERING INDEX waits_event (event=?)"): FIRST,
    ("wait_paths", "SEARCH waits USING COVERING INDEX waits_event (event=? AND path>?)"): FIRST,
    (
        "waits_for",
        "SEARCH waits USING INDEX waits_event (event=? AND path=? AND text=?)",
    ): "all of them get the event",
    ("settled_invocations", "SCAN steps USING COVERING INDEX steps_invoked"): OPEN,
    ("orphans", "SCAN child USING INDEX runs_unfinished_children"): OPEN,
    (
        "unused_events",
        "SEARCH events USING INDEX events_name (name=? AND (received_at,id)>(?,?))",
    ): LIMITED,
    ("unsettled_events", "SCAN events USING INDEX events_unsettled"): OPEN,
    ("awaited", "SEARCH waits EXISTS USING COVERING INDEX waits_event (event=?)"): FIRST,
    (
        "list_events",
        "SEARCH events USING INDEX events_received (received_at>? AND (received_at,id)<(?,?))",
    ): LIMITED,
    (
        "list_events_named",
        "SEARCH events USING INDEX events_name "
        "(name=? AND received_at>? AND (received_at,id)<(?,?))",
    ): LIMITED,
    ("newest", "SCAN runs"): FIRST,
    ("newest", "SEARCH runs USING COVERING INDEX runs_ended (ended_at>?)"): FIRST,
    ("newest", "SEARCH events USING COVERING INDEX events_received"): FIRST,
    ("is_sweepable", "SEARCH runs USING COVERING INDEX runs_ended (ended_at<?)"): FIRST,
    ("is_sweepable", "SEARCH events USING COVERING INDEX events_received (received_at<?)"): FIRST,
    ("is_sweepable", "SEARCH runs USING INDEX runs_until_delivered (ended_at<?)"): FIRST,
    ("inbox", "SCAN inbox"): LIMITED,
    ("list_runs", "SEARCH runs USING PRIMARY KEY (id<?)"): LIMITED,
    (
        "list_runs",
        "SEARCH runs USING COVERING INDEX runs_not_completed (status=? AND id<?)",
    ): LIMITED,
    ("origins", "SCAN origins"): "a row for each application",
    ("requests", "SCAN requests"): LIMITED,
    ("write_sweep", "SEARCH runs USING COVERING INDEX runs_ended (ended_at<?)"): LIMITED,
    ("write_sweep", "SEARCH runs USING INDEX runs_until_delivered (ended_at<?)"): LIMITED,
    ("write_sweep", "SEARCH events USING COVERING INDEX events_received (received_at<?)"): LIMITED,
    ("write_sweep", "SCAN requests"): LIMITED,
}
"""Searches in what many runs share, by statement, and why each of them is bounded."""


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The plan of each question, and of each trigger of the writing connection."""
    path = tmp_path_factory.mktemp("plans") / "runs.db"
    store = SqliteStore(path)
    reading = connect(str(path))
    add_views(reading)
    nothing: defaultdict[str, None] = defaultdict(lambda: None)
    found = {
        name: [line for *_, line in reading.execute(f"explain query plan {question}", nothing)]
        for name, question in named("sqlite_reads.sql").items()
    }
    found.update(_writing_plans(store._writer))
    reading.close()
    store.close_now()
    return found


def _writing_plans(connection: apsw.Connection) -> Iterator[tuple[str, list[str]]]:
    connection.config(apsw.SQLITE_DBCONFIG_TRIGGER_EQP, 1)
    statement = f"explain query plan {_insert_statement(1)}"
    lines = [line for *_, line in connection.execute(statement, [None] * statement.count("?"))]
    starts = [n for n, line in enumerate(lines) if line.startswith("-- TRIGGER")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[start].removeprefix("-- TRIGGER "), lines[start:end]


def _shared(plans: dict[str, list[str]]) -> set[tuple[str, str]]:
    return {
        (name, line)
        for name, lines in plans.items()
        for line in lines
        if not OF_ONE.fullmatch(line) and not OF_NOTHING.fullmatch(line)
    }


def test_every_statement_is_looked_at(plans: dict[str, list[str]]) -> None:
    assert {"run", "ready", "waits_for", "write_run_created", "write_step", "write_sweep"} <= set(
        plans
    )
    assert all(plans.values())


def test_no_statement_goes_through_what_other_runs_left(plans: dict[str, list[str]]) -> None:
    assert _shared(plans) - set(SHARED) == set()


def test_the_list_of_shared_searches_is_up_to_date(plans: dict[str, list[str]]) -> None:
    assert set(SHARED) - _shared(plans) == set()


def test_a_plan_is_made_once_and_not_for_each_value_that_is_bound(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "runs.db")
    reading = connect(str(tmp_path / "runs.db"))
    for connection in (reading, store._writer):
        assert connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, -1) == 1
    reading.close()
    store.close_now()
