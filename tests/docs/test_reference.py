"""docs/reference.md says what the docstrings say."""

from __future__ import annotations

from tests.docs.pages import GENERATED
from tests.docs.reference import page, public_names


def test_the_reference_is_up_to_date() -> None:
    is_same = GENERATED.read_text("utf-8") == page()
    assert is_same, "docstrings have changed: run `python -m tests.docs.reference`"


def test_every_public_name_is_in_the_reference() -> None:
    headings = {line.lstrip("# ") for line in page().splitlines() if line.startswith("###")}
    assert public_names() <= headings
