"""An import by `examples/csv_import.py` is watched, while its server is killed."""

from __future__ import annotations

import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from tests.chaos.process import Server
from tests.examples.first_lines import commands, type_into_shell


def test_an_import_goes_on_where_it_was(tmp_path: Path) -> None:
    with (
        Server(tmp_path, app="examples.csv_import:app", alive="/docs") as server,
        ThreadPoolExecutor() as threads,
    ):
        watching = threads.submit(type_into_shell, server, commands("csv_import"))
        while saved(tmp_path)[0] < 500:
            assert not watching.done()
            time.sleep(0.02)
        server.kill()
        server.start()
        *lines, _, answer = watching.result(30).splitlines()

    status, _, report = answer.partition(": ")
    bad = {"row": 7, "because": "String should match pattern '^\\S+@\\S+$'"}
    assert (status, json.loads(report)) == ("200", {"imported": 1999, "rejected": [bad]})
    assert [line for line in lines if " of " in line] == [
        f"{done} of 2000: " for done in range(100, 2001, 100)
    ]
    assert [line for line in lines if "bad" in line] == [f"warning: row 7 is bad: {bad['because']}"]
    there, written = saved(tmp_path)
    assert there == 1999
    assert written - there <= 100, "only the batch under way was done again"


def saved(folder: Path) -> tuple[int, int]:
    """How many customers there are, and how many were written, replaced ones included."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/customers.db?mode=ro", uri=True)) as database:
            row = database.execute("select count(*), max(rowid) from customer").fetchone()
            return row[0], row[1] or 0
    except sqlite3.OperationalError:
        return 0, 0
