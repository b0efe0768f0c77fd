"""What handlers raise and catch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import assert_type

from durable_endpoints import (
    CompensationError,
    ConfigurationError,
    DurableEndpointsError,
    EngineError,
    LimitError,
    NonRetriableError,
    NotInRunError,
    RememberedError,
    RetryAfterError,
    StepError,
    StorageError,
    UsageError,
    step,
)


def declined() -> None:
    raise NonRetriableError("card declined")


def limited(when: datetime) -> None:
    if when < datetime.now(UTC):
        raise RetryAfterError("slow down", "30s")
    if when > datetime.now(UTC):
        raise RetryAfterError("slow down", when)
    raise RetryAfterError("slow down", timedelta(seconds=30))


async def handler() -> str:
    try:
        await step.run("charge", declined)
    except StepError as error:
        assert_type(error.step, str)
        assert_type(error.name, str)
        assert_type(error.message, str)
        assert_type(error.attempts, int)
        assert_type(error.where, str)
        assert_type(error.raised_at, str)
        assert_type(error.explanation, str)
        if isinstance(error.__cause__, RememberedError):
            assert_type(error.__cause__.name, str)
    except CompensationError as error:
        assert_type(error.failed, dict[str, Exception])
    return "declined"


tree: list[type[DurableEndpointsError]] = [
    ConfigurationError,
    UsageError,
    NotInRunError,
    LimitError,
    EngineError,
    StorageError,
]
