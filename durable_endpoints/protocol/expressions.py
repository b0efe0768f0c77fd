"""CEL conditions of waits, evaluated over an event under the name `async` (as Inngest has it).

The evaluator is an optional extra (`pip install "durable-endpoints[cel]"`): whoever opens a wait
with a condition calls `check` first, which says so.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from durable_endpoints.protocol.errors import ConfigurationError


def check(expression: str) -> None:
    """Raise `ConfigurationError` without the extra, and `ValueError` if this is not CEL."""
    _compile(expression)


def holds(expression: str, document: dict[str, object]) -> bool:
    """Whether the event satisfies the condition; a missing key or a type error means no."""
    try:
        return _compile(expression).execute({"async": document}) is True
    except Exception:
        return False


@lru_cache(maxsize=512)
def _compile(expression: str) -> Any:
    try:
        import cel
    except ImportError:
        raise ConfigurationError(
            'if_exp needs the CEL evaluator: pip install "durable-endpoints[cel]"'
        ) from None
    return cel.compile(expression)
