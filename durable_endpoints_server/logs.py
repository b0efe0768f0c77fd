"""Logs of a server: lines for people, or JSON for programs, each with the run that it is about."""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

_LOGGERS = ("durable_endpoints", "uvicorn.error")
_RUN = re.compile(r"\brun ([0-7][0-9A-HJKMNP-TV-Z]{25})\b")
"""How messages name a run: by a ULID, after this word."""
_FIELDS = ("run_id", "method", "path", "status", "elapsed_ms", "client")
"""What a logger may give as `extra`."""


def configure_logging(format: Literal["text", "json"], level: str) -> None:
    """Send what this package and uvicorn log to stderr. uvicorn only tells of what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("durable_endpoints").setLevel(level.upper())
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, _number(level)))


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `message`, `run_id` where there is one, the fields
    of a request, and `error` with a trace."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": message,
        }
        if (run_id := _run_of(message)) is not None:
            line["run_id"] = run_id
        for name in _FIELDS:
            if (value := getattr(record, name, None)) is not None:
                line[name] = value
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextLines(logging.Formatter):
    """A line for people. What a caller sent cannot begin a line of its own in it."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:<7} {_on_one_line(record.getMessage())}"
        run_id = getattr(record, "run_id", None)
        if run_id is not None and run_id not in line:
            line += f" (run {_on_one_line(str(run_id))})"
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line


def _run_of(message: str) -> str | None:
    found = _RUN.search(message)
    return found[1] if found else None


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _on_one_line(text: str) -> str:
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(letter: str) -> str:
    return letter if letter.isprintable() else repr(letter)[1:-1]
