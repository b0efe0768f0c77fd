"""How the tests are spread over processes: what shares servers stays together, what waits begins
first.

pytest-xdist's own groups travel in the names of tests, which pytest 9.2 does not let it change; and
it begins with the groups of most tests, not with those that take longest.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling

_TOGETHER = {
    "tests/interop/": "interop",
    "tests/chaos/test_companion.py": "companion",
    "tests/chaos/test_replicas.py": "companion",
    "tests/llm/": "llm",
    "tests/browser/": "browser",
    "tests/server/": "server",
    "tests/mutations/": "mutations",
}
"""Tests that share what takes long to start, such as browsers, Node and servers, and what they form
together. The longest come first."""

_BEGUN_FIRST = (
    *_TOGETHER,
    "tests/chaos/",
    "tests/typing/",
    "tests/docs/",
    "tests/examples/",
    "tests/durable_endpoints/demo/",
)
"""Tests that take seconds each, most of which they wait for other processes: what is short fills
the gaps that they leave at the end."""


def place_of(node_id: str) -> int:
    """Where a test comes in the order in which tests begin."""
    for place, prefix in enumerate(_BEGUN_FIRST):
        if node_id.startswith(prefix):
            return place
    return len(_BEGUN_FIRST)


class Spreading(LoadScopeScheduling):
    """Gives each process the next test, or the next ones that belong together."""

    def __init__(self, config: Any, log: Any = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        """What the test belongs to."""
        for prefix, together in _TOGETHER.items():
            if nodeid.startswith(prefix):
                return together
        return nodeid
