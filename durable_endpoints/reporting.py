"""`step.progress` and `step.log`: what a run's readers are told about work that is under way.

Both are plain calls that never wait, inside a step's body as well as between steps, and from any
thread that carries the context. What a step reports belongs to that try of it, as what it streams
does; what is reported between steps is reported once, however often the handler runs.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Literal, get_args

import orjson

from durable_endpoints.errors import UsageError
from durable_endpoints.protocol.streams import RecordKind
from durable_endpoints.sinks import Sink, sink_of

logger = logging.getLogger("durable_endpoints.run")

Level = Literal["debug", "info", "warning", "error"]
_LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def progress(current: float, total: float | None = None, message: str | None = None) -> None:
    """Tell the run's readers how far the work is: `step.progress(30, 100, "reading")`.

    `current` and `total` are numbers from 0 on, in any unit of yours; leave `total` out if it is
    not known. Readers get `durable.progress` frames (`on_progress` in the clients). Report as often
    as you like: in a step that reports faster than the disk writes, readers get the latest, and
    nothing fails because `max_stream` is used up.

    Raises `UsageError` for what is no such number or no text, and `NotInRunError` as
    `stream.push` does. Outside any request it does nothing.
    """
    what = "step.progress"
    data: dict[str, Any] = {"current": _number(what, "current", current)}
    if total is not None:
        data["total"] = _number(what, "total", total)
    if message is not None:
        data["message"] = _text(what, message)
    sink = sink_of(what)
    if sink is not None:
        sink.push(data, what, RecordKind.PROGRESS)


class Log:
    """The namespace `step.log`: lines for the run's readers, and for Python's log.

    `message` is a text, and `data` JSON values by name. Readers get `durable.log` frames (`on_log`
    in the clients), so write nothing that the client must not see. The line also goes to the logger
    `durable_endpoints.run`, with the run's id, the step's name and the data as `run_id`, `step` and
    `data` of its record: once, and not again when the handler is replayed. Lines that are more than
    a run may stream (`max_stream`) go there alone.

    Raises `UsageError` for an unknown level or a message that is no text, `StepValueError` for data
    that is not JSON, and `NotInRunError` as `stream.push` does. Outside any request it does
    nothing.
    """

    def __call__(self, level: Level, message: str, /, **data: Any) -> None:
        """Write a line of this level: `debug`, `info`, `warning` or `error`."""
        if level not in _LEVELS:
            raise UsageError(
                f"step.log({level!r}, …): the level is one of {', '.join(get_args(Level))}"
            )
        _write(f"step.log({level!r}, …)", level, message, data)

    def debug(self, message: str, /, **data: Any) -> None:
        """Write a line of level `debug`."""
        _write("step.log.debug", "debug", message, data)

    def info(self, message: str, /, **data: Any) -> None:
        """Write a line of level `info`."""
        _write("step.log.info", "info", message, data)

    def warning(self, message: str, /, **data: Any) -> None:
        """Write a line of level `warning`."""
        _write("step.log.warning", "warning", message, data)

    def error(self, message: str, /, **data: Any) -> None:
        """Write a line of level `error`."""
        _write("step.log.error", "error", message, data)


def _write(what: str, level: str, message: str, data: dict[str, Any]) -> None:
    line: dict[str, Any] = {"level": level, "message": _text(what, message)}
    if data:
        line["data"] = data
    sink = sink_of(what)
    if sink is None:
        return
    line["time"] = sink.execution.engine.now()
    if sink.push(line, what, RecordKind.LOG):
        _tell(sink, _LEVELS[level], message, data)


def _tell(sink: Sink, level: int, message: str, data: dict[str, Any]) -> None:
    """Python's log gets the line too, as from the code that wrote it."""
    if not logger.isEnabledFor(level):
        return
    run_id = sink.execution.info.run_id
    step = None if sink.scope is None else str(sink.scope.step)
    logger.log(
        level,
        "run %s%s: %s%s",
        run_id,
        "" if step is None else f", step {step!r}",
        message,
        f" {orjson.dumps(data).decode()}" if data else "",
        extra={"run_id": run_id, "step": step, "data": data},
        stacklevel=4,
    )


def _number(what: str, name: str, value: float) -> float:
    if isinstance(value, bool) or type(value) not in (int, float) or not 0 <= value < math.inf:
        raise UsageError(f"{what}: {name}={value!r}: give a number from 0 on")
    return value


def _text(what: str, message: str) -> str:
    if not isinstance(message, str):
        raise UsageError(
            f"{what}: the message is a text, not {message!r}; data goes beside it, by name"
        )
    return message
