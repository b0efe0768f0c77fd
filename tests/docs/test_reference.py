"""docs/reference.md says what the docstrings say."""

from __future__ import annotations

from dataclasses import fields

from durable_endpoints.options import EndpointOptions
from durable_endpoints.settings import Settings
from tests.docs.pages import GENERATED, ROOT
from tests.docs.reference import page, public_names


def test_the_reference_is_up_to_date() -> None:
    is_same = GENERATED.read_text("utf-8") == page()
    assert is_same, "docstrings have changed: run `python -m tests.docs.reference`"


def test_every_public_name_is_in_the_reference() -> None:
    headings = {line.lstrip("# ") for line in page().splitlines() if line.startswith("###")}
    assert public_names() <= headings


def test_every_option_and_setting_is_in_its_table() -> None:
    table = (ROOT / "docs" / "options.md").read_text("utf-8")
    names = {field.name for kind in (EndpointOptions, Settings) for field in fields(kind)}
    told_otherwise = {"server_url", "signing_key_fallback", "sealing_key_fallback"}
    assert {name for name in names - told_otherwise if f"`{name}`" not in table} == set()
