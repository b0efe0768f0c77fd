"""Runs as JSON, for programs and the command line, and as text that is made from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from durable_endpoints.protocol import failures
from durable_endpoints.protocol.ops import StepRecord
from durable_endpoints_server.engine.model import Run
from durable_endpoints_server.store.base import Reads, RequestRecord, RunSummary

_PAGE = 1024 * 1024
"""Bytes of a stream that are read at once."""
_PREVIEW = 60


def as_json(value: Any) -> str:
    """Indented JSON."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def summary(line: RunSummary) -> dict[str, Any]:
    """A line of the listing, as JSON."""
    return {
        **_run(line.run),
        "method": line.method,
        "path": line.path,
        "status_code": line.status_code,
        "next_due": _time(line.next_due),
    }


def table_of_runs(lines: Sequence[dict[str, Any]], now: int) -> str:
    """The listing, as text."""
    rows = [
        (
            line["id"],
            line["status"] + (f" ({line['reason']})" if line["reason"] else ""),
            str(line["status_code"] or ""),
            line["function_id"],
            f"{_span(now - _instant(line['began_at']))} ago",
            _due(line, now),
        )
        for line in lines
    ]
    return _table(("RUN", "STATUS", "CODE", "ENDPOINT", "BEGAN", "NEXT"), rows, "No runs.")


async def run_in_full(store: Reads, run_id: str) -> dict[str, Any] | None:
    """Everything that may be shown of a run; None for an unknown one."""
    entry, ended = await store.entry(run_id), await store.ended(run_id)
    if entry is None or ended is None:
        return None
    progress = await store.last_progress(run_id)
    return {
        **_run(entry.run),
        "method": ended.method,
        "path": ended.path,
        "app": entry.app,
        "version": await store.version(run_id),
        "status_code": ended.status_code,
        "error": _failure(ended.error),
        "deadline": _time(entry.run.deadline),
        "generation": entry.run.generation,
        "interruptions": entry.run.interruptions,
        "progress": orjson.loads(progress.chunks()[-1]) if progress is not None else None,
        "parent": entry.run.parent_run,
        "children": [_run(child) for child in await store.children(run_id)],
        "steps": [_step(step) for step in sorted(entry.memo, key=_by_completion)],
        "attempts": [
            {
                "step": line.step,
                "attempt": line.attempt,
                "began_at": _time(line.began_at),
                "error": _failure(line.error),
            }
            for line in await store.attempts(run_id)
        ],
        "waits": [
            {"step": str(match.step.id), "event": match.wait.alternative.event}
            for match in await store.waits_of(run_id)
        ],
    }


def page_of_run(full: dict[str, Any]) -> str:
    """The same, as text."""
    lines = [
        f"{full['id']}  {full['function_id']}",
        f"  {full['method']} {full['path']}",
        f"  status      {full['status']}" + (f" ({full['reason']})" if full["reason"] else ""),
    ]
    if full["status_code"]:
        lines.append(f"  answered    {full['status_code']}")
    lines.append(f"  began       {full['began_at']}")
    for name in ("ended_at", "app", "version", "deadline", "parent", "error"):
        if full[name]:
            lines.append(f"  {name.removesuffix('_at'):<11} {full[name]}")
    if full["progress"]:
        lines.append(f"  progress    {_progress(full['progress'])}")
    steps = [
        (
            step["name"],
            step["kind"],
            step["state"],
            str(step["attempt"] or ""),
            step["due"] or step["ended_at"] or "",
            step["error"] or step["value"] or "",
        )
        for step in full["steps"]
    ]
    lines += ["", _table(("STEP", "KIND", "STATE", "TRY", "WHEN", "RESULT"), steps, "No steps.")]
    if full["waits"]:
        waits = [(wait["step"], wait["event"]) for wait in full["waits"]]
        lines += ["", _table(("WAITING STEP", "FOR"), waits, "")]
    if full["attempts"]:
        tries = [
            (line["step"], str(line["attempt"]), line["began_at"], line["error"])
            for line in full["attempts"]
        ]
        lines += ["", _table(("FAILED STEP", "TRY", "WHEN", "ERROR"), tries, "")]
    if full["children"]:
        children = [
            (child["id"], child["function_id"], child["status"], child["began_at"])
            for child in full["children"]
        ]
        lines += ["", _table(("CHILD", "ENDPOINT", "STATUS", "BEGAN"), children, "")]
    return "\n".join(lines)


async def stream_of_run(store: Reads, run_id: str) -> list[dict[str, Any]] | None:
    """A run's stream log, chunk by chunk. None for an unknown run."""
    entry = await store.entry(run_id)
    if entry is None:
        return None
    names = {step.id.hash: str(step.id) for step in entry.memo}
    lines: list[dict[str, Any]] = []
    after = 0
    while (page := await store.stream_page(run_id, after, _PAGE)) and page.records:
        for record in page.records:
            line = {
                "event": record.kind.name.lower(),
                "step": names.get(record.step, record.step) or None,
                "attempt": record.attempt or None,
            }
            chunks = [b"null"] if record.kind.is_end else record.chunks()
            lines += [
                {"position": position, **line, "data": orjson.loads(chunk)}
                for position, chunk in enumerate(chunks, record.position)
            ]
        after = page.records[-1].last
    return lines


def page_of_stream(lines: Sequence[dict[str, Any]]) -> str:
    """The same, as text."""
    rows = [
        (
            str(line["position"]),
            line["event"],
            line["step"] or "",
            str(line["attempt"] or ""),
            _streamed(line["event"], line["data"]),
        )
        for line in lines
    ]
    return _table(("POSITION", "EVENT", "STEP", "TRY", "DATA"), rows, "It has streamed nothing.")


def _streamed(event: str, data: Any) -> str:
    """What a chunk says, in one short line."""
    if event == "data":
        return _short(orjson.dumps(data).decode())
    if event == "progress":
        return _progress(data)
    if event == "log":
        values = f" {orjson.dumps(data['data']).decode()}" if "data" in data else ""
        return _short(f"{data['level']}: {_escaped(data['message'])}{values}")
    if event == "verbatim":
        return _short(f"{data[0]} {orjson.dumps(data[1]).decode()}")
    return ""


def _progress(data: dict[str, Any]) -> str:
    done = f"{data['current']} of {data['total']}" if "total" in data else str(data["current"])
    return _short(f"{done}: {_escaped(data['message'])}" if "message" in data else done)


def _escaped(text: str) -> str:
    """A text without what would move a terminal's cursor."""
    return orjson.dumps(text).decode()[1:-1]


def request(line: RequestRecord) -> dict[str, Any]:
    """A tracked request, as JSON."""
    return line._asdict()


def table_of_requests(lines: Sequence[dict[str, Any]]) -> str:
    """Tracked requests, as text."""
    rows = [
        (
            _time(line["at"]) or "",
            line["method"],
            line["route"],
            str(line["status"]),
            f"{line['elapsed'] / 1_000:.1f} ms",
            line["run_id"] or "",
        )
        for line in lines
    ]
    return _table(("AT", "METHOD", "ROUTE", "CODE", "TOOK", "RUN"), rows, "No tracked requests.")


def _run(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "function_id": run.function_id,
        "status": run.status.label,
        "reason": run.reason,
        "began_at": _time(run.began_at),
        "ended_at": _time(run.ended_at),
    }


def _step(step: StepRecord) -> dict[str, Any]:
    return {
        "name": str(step.id),
        "kind": str(step.kind),
        "state": step.state.name.lower(),
        "attempt": step.attempt,
        "began_at": _time(step.began_at),
        "ended_at": _time(step.ended_at),
        "due": _time(step.due),
        "value": _preview(step.value),
        "error": _failure(step.error),
    }


def _by_completion(step: StepRecord) -> tuple[int, int]:
    """Final steps in their order, then open ones as they were opened."""
    return (step.order or 2**62, step.began_at)


def _due(line: dict[str, Any], now: int) -> str:
    if line["next_due"] is None or line["ended_at"] is not None:
        return ""
    due = _instant(line["next_due"])
    return f"in {_span(due - now)}" if due > now else "now"


def _preview(value: bytes | None) -> str | None:
    if value is None:
        return None
    return _short(value.decode("utf-8", "replace"))


def _short(text: str) -> str:
    return text if len(text) <= _PREVIEW else f"{text[: _PREVIEW - 1]}…"


def _failure(error: bytes | None) -> str | None:
    return str(failures.decode(error)) if error else None


def _time(instant: int | None) -> str | None:
    if instant is None:
        return None
    return datetime.fromtimestamp(instant / 1_000, UTC).isoformat(" ", "milliseconds")[:23] + "Z"


def _instant(text: str) -> int:
    """Epoch milliseconds, from what `_time` wrote."""
    return round(datetime.fromisoformat(text).timestamp() * 1_000)


def _span(milliseconds: int) -> str:
    seconds = max(0, milliseconds) / 1_000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.1f}s"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], empty: str) -> str:
    lines = [head, *rows]
    if len(lines) == 1:
        return empty
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
