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
SEEN = """
    window.seen = [];
    new MutationObserver(() => {
        const last = [...document.querySelectorAll(".assistant")].pop();
        if (last) seen.push(last.className + ": " + last.textContent);
    }).observe(document, { subtree: true, childList: true, characterData: true });
"""


def test_an_answer_that_breaks_off_is_withdrawn_and_written_by_the_fallback(
    browser: Browser, tmp_path: Path
) -> None:
    need(find_spec("openai") is not None, "OpenAI's client")
    with (
        Server(tmp_path, app="examples.chat:app", alive="/docs") as server,
        browser.new_page() as page,
    ):
        page.set_default_timeout(30_000)
        page.goto(server.url)
        page.evaluate(SEEN)
        page.fill("[name=question]", "Hello")
        page.click("text=Send")
        page.wait_for_function("seen.at(-1)?.includes('You said')")
        seen = page.evaluate("seen")
        assert "assistant provisional: What a good question! Let " in seen
        assert not any("What" in text and "You" in text for text in seen), "it was withdrawn first"
        page.reload()
        page.wait_for_selector("[title='by the fallback model']")
        assert page.text_content(".assistant") == ANSWER
        assert page.text_content(".user") == "Hello"

        page.fill("[name=question]", "And now?")
        page.click("text=Send")
        page.click("#stop")  # waits until it is there
        page.wait_for_selector("text=(stopped)")
        assert page.evaluate("JSON.parse(sessionStorage.conversation).length") == 2
