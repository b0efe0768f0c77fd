"""Handlers that call other steps in a replay than before: told, because the work is done twice."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from durable_endpoints.call_sites import CallSites
from durable_endpoints.hooks import RunInfo
from durable_endpoints.memo import Memo
from durable_endpoints.protocol.ops import StepKind
from durable_endpoints.protocol.step_ids import StepId

logger = logging.getLogger("durable_endpoints")

_NOT_CALLED = frozenset({StepKind.REMEMBER, StepKind.HANDLER})
"""Kinds that the handler's own code does not call."""
_SHOWN = 3


def check_replay(run: RunInfo, memo: Memo, calls: CallSites) -> None:
    """Look at an execution that has called whatever it will call. To be told of are steps that
    earlier executions have finished and this one did not call, if it called new ones instead:
    names with a random part, or the time."""
    passed_over = [
        record.id
        for record in memo.inherited()
        if record.id.name
        and record.is_final
        and record.kind not in _NOT_CALLED
        and not calls.has(record.id)
    ]
    if not passed_over:
        return
    new = [step for step in calls.steps() if memo.is_new(step)]
    if new:
        logger.warning(
            "run %s (%s): an earlier execution has finished %s, which this one did not call; it "
            "called %s instead%s. A handler has to call the same steps each time, or their work is "
            "done again: make no step's name, and no decision outside a step, of a random value "
            "or the time. (After a change of the code this may be as it should)",
            run.run_id,
            run.function_id,
            _names(passed_over),
            _names(new),
            f" (at {where})" if (where := calls.where(new[0])) else "",
        )


def _names(steps: Iterable[StepId]) -> str:
    names = [repr(str(step)) for step in steps]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
