"""Step data on its way to the engine and back, through the hooks that encode and decode it.

What an application's code makes goes through them: results, and errors with their messages and
stacks. What the engine makes (the event that a wait got, the end of a sleep) does not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import orjson

from durable_endpoints.engines.base import Session
from durable_endpoints.errors import ConfigurationError
from durable_endpoints.hooks import Hook, StepData, overrides
from durable_endpoints.protocol.failures import Failure
from durable_endpoints.protocol.ops import (
    StepDone,
    StepFailed,
    StepKind,
    StepOp,
    StepRecord,
    StepRetry,
)
from durable_endpoints.protocol.runs import Complete, Fail, Listener
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.protocol.values import article

logger = logging.getLogger("durable_endpoints")

_CODED = frozenset({StepKind.RUN, StepKind.INVOKE, StepKind.REMEMBER})
"""Steps whose results the application's code makes. All errors are its own."""
_RUN = "the run itself"
_NOT_ENCODED = Failure("NotEncoded", "the hooks could not encode this error").encode()


class UndecodableError(Exception):
    """A hook does not decode what is remembered of a run."""


class Coding(NamedTuple):
    """The hooks that encode and decode, in their order."""

    encoders: tuple[Hook, ...] = ()
    decoders: tuple[Hook, ...] = ()

    @classmethod
    def among(cls, hooks: Sequence[Hook]) -> Coding:
        """Those of `hooks` that override `encode`, and `decode`."""
        return cls(
            tuple(hook for hook in hooks if overrides(hook, "encode")),
            tuple(hook for hook in reversed(hooks) if overrides(hook, "decode")),
        )

    def wrap(self, session: Session) -> Session:
        """`session` with its step data coded; itself, if no hook does that.

        Raises `UndecodableError` if what earlier executions left cannot be decoded.
        """
        if not self.encoders and not self.decoders:
            return session
        return cast("Session", CodedSession(session, self))

    def encode(self, where: StepData, data: bytes) -> bytes:
        """Raises `ConfigurationError` if a hook fails: nothing goes out that is not encoded."""
        for hook in self.encoders:
            try:
                data = _bytes(hook.encode(where, data))
                orjson.loads(data)
            except Exception as error:
                raise ConfigurationError(
                    f"{type(hook).__name__}.encode failed on the {where.kind} of {where.step!r}, "
                    f"so it cannot be remembered: {type(error).__name__}: {error}"
                ) from error
        return data

    def decode(self, where: StepData, data: bytes) -> bytes:
        """Raises `UndecodableError`."""
        for hook in self.decoders:
            try:
                data = _bytes(hook.decode(where, data))
            except Exception as error:
                raise UndecodableError(
                    f"{type(hook).__name__}.decode failed on the {where.kind} of {where.step!r}: "
                    f"{type(error).__name__}: {error}"
                ) from error
        return data

    def decoded(self, run_id: str, record: StepRecord) -> StepRecord:
        """What is remembered of a step of the run, as the application's code sees it.

        Raises `UndecodableError`.
        """
        value, error = record.value, record.error
        if value is not None and record.kind in _CODED:
            value = self.decode(StepData(run_id, str(record.id), "result"), value)
        if error is not None:
            error = self.decode(StepData(run_id, str(record.id), "error"), error)
        return record._replace(value=value, error=error)

    def encode_error(self, where: StepData, data: bytes) -> bytes:
        """An error is part of telling what went wrong, so that it fails is only logged."""
        try:
            return self.encode(where, data)
        except ConfigurationError as error:
            logger.error("run %s: %s", where.run_id, error)
            return _NOT_ENCODED


def named(session: Session, record: StepRecord, step: StepId, kind: StepKind) -> StepRecord:
    """What an engine remembers under a hash alone, as a record of the step whose hash that is.

    Raises `UndecodableError`.
    """
    record = record._replace(id=step, kind=kind)
    return session.decoded(record) if isinstance(session, CodedSession) else record


def _bytes(data: object) -> bytes:
    if not isinstance(data, bytes):
        raise TypeError(f"it gave {article(data)}, and not bytes")
    return data


class CodedSession:
    """A `Session`: everything but what is overridden here is the inner one's."""

    def __init__(self, inner: Session, coding: Coding) -> None:
        self._inner = inner
        self._coding = coding
        self.memo = [self.decoded(record) if record.id.name else record for record in inner.memo]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def listener(self) -> Listener | None:
        return self._inner.listener

    @listener.setter
    def listener(self, listener: Listener | None) -> None:
        self._inner.listener = listener

    def decoded(self, record: StepRecord) -> StepRecord:
        """What is remembered of a step, as the application's code sees it.

        Raises `UndecodableError`.
        """
        return self._coding.decoded(self._inner.id, record)

    def record(self, op: StepOp) -> StepRecord:
        if isinstance(op, StepDone):
            value = self._coding.encode(self._where(op.step, "result"), op.value)
            return self._inner.record(op._replace(value=value))._replace(value=op.value)
        if isinstance(op, StepFailed | StepRetry):
            error = self._coding.encode_error(self._where(op.step, "error"), op.error)
            return self._inner.record(op._replace(error=error))._replace(error=op.error)
        return self._inner.record(op)

    async def end(self, command: Complete | Fail) -> None:
        if isinstance(command, Fail) and command.error is not None:
            where = StepData(self._inner.id, _RUN, "error")
            error = self._coding.encode_error(where, command.error)
            command = command._replace(error=error)
        await self._inner.end(command)

    def _where(self, step: StepId, kind: Any) -> StepData:
        return StepData(self._inner.id, str(step), kind)
