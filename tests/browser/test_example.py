"""The page of `examples/streaming.py`, served by the example itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.process import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TEXT = "All that is to be known about whales, in a few words. That is all."


def test_a_page_reloaded_in_the_middle_and_a_server_killed(
    browser: Browser, tmp_path: Path
) -> None:
    shown = "document.querySelector('p').textContent"
    with (
        Server(tmp_path, app="examples.streaming:app", alive="/docs") as server,
        browser.new_page() as page,
    ):
        page.set_default_timeout(30_000)
        page.goto(server.url)
        page.click("#write")
        page.wait_for_function(f"{shown}.startsWith('All that is')")
        page.reload()
        page.wait_for_function(f"{shown} == ''", timeout=10_000)  # withdrawn
        page.wait_for_function(f"{shown}.startsWith('All')")
        page.reload()
        page.wait_for_function(f"{shown}.startsWith('All that')")
        server.kill()
        server.start()
        page.wait_for_function("document.querySelector('#answer').textContent != ''")
        assert page.evaluate(shown).strip() == TEXT
        assert page.text_content("#answer") == f'200: {{"text":"{TEXT}"}}'
        assert page.evaluate("sessionStorage.length") == 0, "the run is forgotten at its end"
