"""The core imports nothing that reads a clock, randomness, a file or a socket."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import durable_endpoints_server.engine

FOLDER = Path(durable_endpoints_server.engine.__file__).parent
ALLOWED = {
    "__future__",
    "collections.abc",
    "enum",
    "orjson",
    "typing",
    "durable_endpoints.protocol.errors",
    "durable_endpoints.protocol.matching",
    "durable_endpoints.protocol.ops",
    "durable_endpoints.protocol.runs",
    "durable_endpoints.protocol.streams",
    "durable_endpoints.protocol.step_ids",
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_a_module_of_the_core_is_pure(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            assert name in ALLOWED or name.startswith("durable_endpoints_server.engine."), name
