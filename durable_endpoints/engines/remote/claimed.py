"""A run that the server has claimed for this process, as it arrives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.ops import StepKind, StepRecord
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints_server.engine.model import Run, Stream
from durable_endpoints_server.engine.transitions import register


class Claimed(NamedTuple):
    """A run, and what its next execution needs."""

    run: Run
    """As far as the rules about what it records go by it."""
    memo: Sequence[StepRecord]
    stream: Stream
    request: bytes | None
    """Sealed; None for one that is not there any more."""
    retries: int
    root_path: str

    @classmethod
    def unpack(cls, told: dict[str, Any]) -> Claimed:
        """Raises `WireError`, and `KeyError` for what is missing."""
        memo = [wire.unpack_step(step) for step in told["memo"]]
        new = NewRun(
            wire.text(told["run"]), wire.text(told["function_id"]), "", "", "", request=b""
        )
        run = register(new, "", None, wire.whole(told["began_at"])).run._replace(
            generation=wire.whole(told["generation"]),
            depth=wire.whole(told["depth"]),
            steps=sum(step.kind is not StepKind.HANDLER for step in memo),
            memo_bytes=sum(len(step.value or b"") + len(step.error or b"") for step in memo),
            last_order=max((step.order for step in memo), default=0),
        )
        streamed, request = told["stream"], told["request"]
        return cls(
            run,
            memo,
            Stream()
            if streamed is None
            else Stream(
                tail=wire.whole(streamed["tail"]),
                size=wire.whole(streamed["size"]),
                outside=wire.whole(streamed["outside"]),
            ),
            None if request is None else wire.unpack_bytes(request),
            wire.whole(told["retries"]),
            wire.text(told["root_path"]),
        )
