"""The ops of Inngest's SDKs, as they come over the wire (Inngest SDK protocol, "steps").

What is not known is passed over: SDKs send many fields that mean something to themselves only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from durable_endpoints.protocol.step_ids import HANDLER_STEP, MAX_NAME_LENGTH, StepId
from durable_endpoints_server.inngest import loose_json
from durable_endpoints_server.inngest.refusals import MalformedError

STEP_RUN: Final = "StepRun"
STEP: Final = "Step"
STEP_ERROR: Final = "StepError"
STEP_FAILED: Final = "StepFailed"
STEP_PLANNED: Final = "StepPlanned"
SLEEP: Final = "Sleep"
WAIT_FOR_EVENT: Final = "WaitForEvent"
WAIT_FOR_SIGNAL: Final = "WaitForSignal"
RUN_COMPLETE: Final = "RunComplete"
SYNC_RUN_COMPLETE: Final = "SyncRunComplete"
DISCOVERY_REQUEST: Final = "DiscoveryRequest"

_LAZY: Final = frozenset({"DeferAdd", "DeferAbort", "None"})
"""Ops that ask for nothing now, and may ride along with others."""
_MAX_OPS: Final = 10_000
_MAX_ELAPSED: Final = 7 * 86_400_000_000
"""Microseconds."""
_ID: Final = re.compile(r"[!-~]{1,128}")


class WireOp(NamedTuple):
    """One op."""

    code: str
    step: StepId
    name: str
    """What the op is about: an event's name, a duration …"""
    opts: Mapping[str, Any]
    data: Any
    error: Any
    elapsed: int
    """How long the body ran, in microseconds."""

    @property
    def is_of_handler(self) -> bool:
        """Whether it is about the handler itself, and not about one of its steps."""
        return self.step.hash == HANDLER_STEP.hash

    @property
    def is_done(self) -> bool:
        """Whether a body has returned: only such ops leave a run in its sync phase."""
        return self.code in (STEP_RUN, STEP)

    @property
    def is_of_body(self) -> bool:
        """Whether a body has ended, well or not."""
        return self.is_done or self.code in (STEP_ERROR, STEP_FAILED)

    @property
    def is_end(self) -> bool:
        return self.code in (RUN_COMPLETE, SYNC_RUN_COMPLETE)

    @property
    def is_racing(self) -> bool:
        """Whether the handler goes on as soon as one of several such steps has ended."""
        return self.opts.get("parallelMode") == "race"


def read_ops(value: Any) -> list[WireOp]:
    """The ops of a checkpoint or of a reply, waits first (as Inngest's server has it: an event that
    one step sends is not to be missed by a wait beside it), without those that ask for nothing.

    Raises `MalformedError`.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise MalformedError(f"ops are a JSON array, not {_kind(value)}")
    if len(value) > _MAX_OPS:
        raise MalformedError(f"{len(value):,} ops at once are more than {_MAX_OPS:,}")
    ops = [_read(item) for item in value if not _is_lazy(item)]
    return sorted(ops, key=lambda op: op.code != WAIT_FOR_EVENT)


def _is_lazy(item: Any) -> bool:
    code = item.get("op") if isinstance(item, dict) else None
    return isinstance(code, str) and code in _LAZY


def _read(item: Any) -> WireOp:
    if not isinstance(item, dict):
        raise MalformedError(f"an op is a JSON object, not {_kind(item)}")
    code, key = item.get("op"), item.get("id")
    if not isinstance(code, str) or not code:
        raise MalformedError("an op has no code (op)")
    if not isinstance(key, str) or not _ID.fullmatch(key):
        raise MalformedError(f"the op {loose_json.printable(code, 64)} has no id of a step")
    opts = item.get("opts")
    return WireOp(
        code=loose_json.printable(code, 64),
        step=_step_id(key, item),
        name=item["name"] if isinstance(item.get("name"), str) else "",
        opts=opts if isinstance(opts, dict) else {},
        data=item.get("data"),
        error=item.get("error"),
        elapsed=_elapsed(item.get("timing")),
    )


def _step_id(key: str, item: dict[str, Any]) -> StepId:
    if key == HANDLER_STEP.hash:
        return HANDLER_STEP
    userland = item.get("userland")
    userland = userland if isinstance(userland, dict) else {}
    names = userland.get("id"), item.get("displayName"), item.get("name")
    name = next((name for name in names if isinstance(name, str) and name), key)
    repeat = userland.get("index")
    is_index = isinstance(repeat, int) and not isinstance(repeat, bool) and 0 <= repeat < 2**31
    return StepId(
        key, loose_json.printable(name, MAX_NAME_LENGTH), repeat if is_index and repeat else 0
    )


def _elapsed(timing: Any) -> int:
    nanoseconds = timing.get("b") if isinstance(timing, dict) else None
    if not isinstance(nanoseconds, int | float) or not nanoseconds > 0:
        return 0
    return int(min(nanoseconds // 1_000, _MAX_ELAPSED))


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {dict: "an object", str: "a text", list: "an array"}
    return kinds.get(type(value), "this")
