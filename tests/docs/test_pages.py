"""What the pages show runs, and does what they say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.docs.pages import GENERATED, PAGES, blocks, name_of
from tests.docs.running import Page


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=name_of)
def test_the_python_of(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(blocks(page))
    monkeypatch.chdir(tmp_path)
    asyncio.run(Page(page).run(found))
