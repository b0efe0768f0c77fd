"""How a command is recorded in a run, whoever executes it."""

from __future__ import annotations

from durable_endpoints.protocol.ops import SignalTaken, StepOp, StepRecord
from durable_endpoints_server.inngest.commands import OpenSignal, signal_taken
from durable_endpoints_server.inngest.ops import WireOp
from durable_endpoints_server.live import LiveRun


async def record(live: LiveRun, op: WireOp, command: StepOp | OpenSignal) -> StepRecord:
    """Record what `op` asks for, and return the step as it is then. A signal that another run
    waits for fails the step.

    Raises as `LiveRun.record` does, and `StorageError`.
    """
    if not isinstance(command, OpenSignal):
        return live.record(command)
    opened = await live.open_signal(command.wait, command.replace)
    if isinstance(opened, SignalTaken):
        return live.record(signal_taken(op, opened))
    return opened
