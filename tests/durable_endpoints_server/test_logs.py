"""Logs of a server."""

from __future__ import annotations

import json
import logging
import sys

from durable_endpoints_server.logs import JsonLines, TextLines

RUN = "01K3ZQJ6YV8M4N5P6Q7R8S9T0A"


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("durable_endpoints", 30, "x.py", 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


def test_a_line_of_json_has_the_run_that_its_message_names() -> None:
    line = json.loads(JsonLines().format(record("run %s is parked: %s", RUN, "no key")))
    assert line["run_id"] == RUN
    assert (line["level"], line["message"]) == ("warning", f"run {RUN} is parked: no key")
    assert line["time"].endswith("Z")
    assert "run_id" not in json.loads(JsonLines().format(record("the runs are many")))


def test_a_line_of_json_has_the_fields_of_a_request() -> None:
    line = json.loads(
        JsonLines().format(record("GET /x 200", run_id=RUN, status=200, elapsed_ms=1.5, path="/x"))
    )
    assert (line["run_id"], line["status"], line["elapsed_ms"]) == (RUN, 200, 1.5)


def test_nothing_begins_a_line_that_is_none() -> None:
    forged = record("GET %s", "/x\n2026-01-01T00:00:00Z ERROR forged\x1b[2J")
    assert "\n" not in TextLines().format(forged)
    assert "\x1b" not in TextLines().format(forged)
    assert len(JsonLines().format(forged).splitlines()) == 1


def test_a_failure_has_its_trace_in_the_log() -> None:
    try:
        raise ValueError("no ink")
    except ValueError:
        failed = record("it failed", run_id=RUN)
        failed.exc_info = sys.exc_info()
    assert "ValueError: no ink" in json.loads(JsonLines().format(failed))["error"]
    text = TextLines().format(failed).splitlines()
    assert text[0].endswith(f"it failed (run {RUN})")
    assert text[-1] == "ValueError: no ink"
