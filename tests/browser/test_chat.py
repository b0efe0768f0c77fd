"""The page of `examples/chat.py`, served by the example itself."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.process import Server
from tests.requirements import need

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ANSWER = "You said “Hello”, and I have nothing to add."


def test_an_answer_that_breaks_off_is_withdrawn_and_written_by_the_fallback(
    browser: Browser, tmp_path: Path
) -> None:
    need(find_spec("openai") is not None, "OpenAI's client")
    shown = "document.querySelector('.assistant:last-of-type').textContent"
    with (
        Server(tmp_path, app="examples.chat:app", alive="/docs") as server,
        browser.new_page() as page,
    ):
        page.set_default_timeout(30_000)
        page.goto(server.url)
        page.fill("[name=question]", "Hello")
        page.click("text=Send")
        page.wait_for_function(f"{shown}.startsWith('What a good')")
        assert page.get_attribute(".assistant", "class") == "assistant provisional"
        page.wait_for_function(f"{shown}.startsWith('You said')")
        page.reload()
        page.wait_for_selector("[title='by the fallback model']")
        assert page.evaluate(shown) == ANSWER
        assert page.text_content(".user") == "Hello"

        page.fill("[name=question]", "And now?")
        page.click("text=Send")
        page.wait_for_function(f"{shown}.startsWith('What a')")
        page.click("#stop")
        page.wait_for_function(f"{shown} == '(stopped)'")
        assert len(page.evaluate("JSON.parse(sessionStorage.conversation)")) == 2
