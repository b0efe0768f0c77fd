"""Each example, started and used as its first lines say."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from durable_endpoints.client import Rollback, Transcript, fetch_with_stream_sync
from tests.chaos.process import ROOT, Server


def test_every_example_is_listed_and_says_how_to_start_it() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for file in sorted((ROOT / "examples").glob("*.py")):
        name = file.stem
        assert f"(examples/{name}.py)" in readme
        docstring = file.read_text("utf-8").split('"""')[1]
        start = f"uvicorn examples.{name}:app", f"python examples/{name}.py"
        assert docstring.split("\n\n    ")[1].startswith(start), name


def test_quickstart_survives_a_kill(tmp_path: Path) -> None:
    with Server(tmp_path, app="examples.quickstart:app", alive="/docs") as server:
        headers = {"idempotency-key": "one"}
        url = f"{server.url}/report/whales"
        first = httpx.post(url, headers=headers, timeout=30)
        assert first.status_code == 303
        server.kill()
        server.start()
        answer = httpx.post(url, headers=headers, timeout=30, follow_redirects=True)
        assert answer.json() == {"report": "whales are large. whales are old"}


def test_streaming_survives_a_break_and_a_kill(tmp_path: Path) -> None:
    transcript, withdrawn = Transcript(), []

    def roll_back(event: Rollback) -> None:
        withdrawn.append(transcript.text)
        transcript.feed(event)

    with (
        Server(tmp_path, app="examples.streaming:app", alive="/docs") as server,
        ThreadPoolExecutor() as threads,
    ):
        assert '"/wait/client.js"' in httpx.get(server.url).text
        module = httpx.get(f"{server.url}/wait/client.js")
        assert module.headers["content-type"].startswith("text/javascript")
        asking = threads.submit(
            fetch_with_stream_sync,
            f"{server.url}/write/whales",
            method="POST",
            on_data=transcript.feed,
            on_commit=transcript.feed,
            on_rollback=roll_back,
        )
        while not withdrawn:
            time.sleep(0.02)
        server.kill()
        server.start()
        answer = asking.result(60)
    assert withdrawn[0].startswith("All that is")
    assert answer.json() == {"text": transcript.committed_text}
    assert transcript.text.endswith("words. That is all.")
