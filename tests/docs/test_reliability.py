"""The tests and commands that docs/reliability.md names are there."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "reliability.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("file", "name"), re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT), ids=lambda part: part
)
def test_a_test_that_is_named_is_there(file: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("module", re.findall(r"python -m ([\w.]+)", TEXT))
def test_a_command_that_is_named_is_there(module: str) -> None:
    spec = find_spec(module)
    assert spec is not None
    assert spec.submodule_search_locations is None or find_spec(f"{module}.__main__") is not None
