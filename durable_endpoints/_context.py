"""The one context variable of the SDK: where in a request the running code stands.

It holds a mutable object (a `Door`, or a `StepScope` inside a step's body), because web frameworks
run handlers in copies of the context, from which a value set later would never come back. The
middleware sets it for each request by plain attribute access; it is never opened as a context
manager, least of all inside a generator, where it would leak into the consumer.
"""

from __future__ import annotations

from typing import Any

from contextvars_extras import ContextVarsRegistry


class _Current(ContextVarsRegistry):  # type: ignore[misc]
    _registry_allocate_on_setattr = False

    place: Any = None


current = _Current()

place_here, stand_at = _Current.place.get_raw, _Current.place.set
"""The same variable without the registry's wrappers, for what every step does."""
