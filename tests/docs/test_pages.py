"""What the pages show runs, and does what they say."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import GENERATED, PAGES, blocks, name_of
from tests.docs.running import Page
from tests.requirements import need


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=name_of)
def test_the_python_of(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(blocks(page))
    for module in ("fastapi", "openai"):
        is_used = any(f"from {module} import" in block.code for block in found)
        need(not is_used or find_spec(module) is not None, module)
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    monkeypatch.chdir(tmp_path)
    asyncio.run(Page(page).run(found))
