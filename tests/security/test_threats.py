"""The threat model of docs/security.md names a test for each attack."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "security.md"
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text("utf-8"))
ATTACKS = [
    line
    for line in PAGE.read_text("utf-8").partition("## Attacks")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| attack")
]


def test_each_attack_has_a_test() -> None:
    assert len(ATTACKS) > 30
    assert [line for line in ATTACKS if "::test_" not in line] == []


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda part: part)
def test_a_test_that_is_named_is_there(file: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text("utf-8"), re.MULTILINE)
