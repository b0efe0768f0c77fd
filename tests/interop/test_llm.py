"""A language model's answer, through a durable endpoint, into Inngest's client."""

from __future__ import annotations

from tests.chaos.process import Server
from tests.interop.clients import Client, commit, data, rollback

TEXT = "Whales are large. Whales are old. Whales sing — 🐋."


def test_an_answer_that_breaks_off_is_withdrawn_and_asked_for_again(
    server: Server, client: Client, name: str, llm: str
) -> None:
    url = f"{server.url}/ask/{name}?llm={llm}"
    reading = client.read(url, knock=f"{server.url}/open/{name}")
    assert reading.calls[:2] == [data("Whales: ", "title"), commit("title")]
    withdrawn = reading.calls.index(rollback("write"))
    lost = "".join(value["data"] for _, value in reading.calls[2:withdrawn])
    assert 0 < len(lost) < len(TEXT)
    assert TEXT.startswith(lost)
    assert reading.calls[-1] == commit("write")
    assert "".join(reading.committed) == reading.answer.json()["text"] == "Whales: " + TEXT
