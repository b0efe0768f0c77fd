"""Who runs Inngest's client for a test: Node, and Chromium on a page of another origin."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = Path(__file__).parent

Call = tuple[str, Any]
"""A callback's name, and what it was given."""


def step_hash(name: str | None) -> str | None:
    """What Inngest calls a step by that name; None stays None."""
    return None if name is None else sha1(name.encode()).hexdigest()


def data(value: Any, name: str | None) -> Call:
    return "data", {"data": value, "hashedStepId": step_hash(name)}


def commit(name: str | None) -> Call:
    return "commit", {"hashedStepId": step_hash(name)}


def rollback(name: str | None) -> Call:
    return "rollback", {"hashedStepId": step_hash(name)}


@dataclass(frozen=True)
class Answer:
    """The final `Response`."""

    status: int
    headers: dict[str, str]
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reading:
    """All that the client did, in order, as `reader.js` tells it."""

    lines: list[Call]

    @cached_property
    def fetches(self) -> list[dict[str, Any]]:
        """The requests it made: url, status and headers of each."""
        told = [value for name, value in self.lines if name == "fetch"]
        return [{**value, "headers": dict(value["headers"])} for value in told]

    @cached_property
    def calls(self) -> list[Call]:
        """The callbacks it made, without those of metadata."""
        return [line for line in self.lines if line[0] in ("data", "commit", "rollback")]

    @cached_property
    def run_ids(self) -> list[str]:
        """What `onMetadata` was called with: once for each stream."""
        return [value["runId"] for name, value in self.lines if name == "metadata"]

    @cached_property
    def answer(self) -> Answer:
        name, value = self._end
        assert name == "response", self.lines
        return Answer(value["status"], dict(value["headers"]), value["body"])

    @cached_property
    def error(self) -> dict[str, str]:
        name, value = self._end
        assert name == "error", self.lines
        return dict(value)

    @property
    def _end(self) -> Call:
        """What the client was left with, after all callbacks."""
        *_, end = [line for line in self.lines if line[0] != "fetch"]
        return end

    @cached_property
    def run_url(self) -> str:
        """Where the run can be waited for."""
        first = self.fetches[0]
        asked, run = str(first["url"]), str(first["headers"]["durable-run-url"])
        return urljoin(asked, run)

    def chunks(self, name: str | None) -> list[Any]:
        """What one step streamed, rolled back or not."""
        hashed = step_hash(name)
        values = [value for call, value in self.calls if call == "data"]
        return [value["data"] for value in values if value["hashedStepId"] == hashed]

    @cached_property
    def committed(self) -> list[Any]:
        """The chunks that are left at the end, as Inngest's documentation tells to keep them."""
        kept: list[tuple[Any, str | None, bool]] = []
        for name, value in self.calls:
            of = value["hashedStepId"]
            if name == "data":
                kept.append((value["data"], of, False))
            elif name == "rollback":
                kept = [chunk for chunk in kept if chunk[2] or chunk[1] != of]
            else:
                kept = [(chunk, by, sure or by == of) for chunk, by, sure in kept]
        return [chunk for chunk, _, sure in kept if sure]


class Client(Protocol):
    """Runs the client to its end."""

    def read(self, url: str, **task: Any) -> Reading:
        """`task`: `request`, `knock`, `pause`, `abortAfter`, as `reader.js` takes them."""
        ...


class Node:
    """Each reading in a process of its own, which must come to its own end."""

    def read(self, url: str, **task: Any) -> Reading:
        task = {"url": url, **task}
        done = subprocess.run(
            ["node", str(FOLDER / "node.js")],
            input=json.dumps(task).encode(),
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
        return Reading([tuple(json.loads(line)) for line in done.stdout.splitlines()])


class Chromium:
    """Each reading in a page that has the bundled client as `interop`."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def read(self, url: str, **task: Any) -> Reading:
        (reading,) = self.read_together([url], **task)
        return reading

    def read_together(self, urls: list[str], **task: Any) -> list[Reading]:
        """One reading of each url, all at the same time, in one page."""
        readings: list[str] = self._page.evaluate(
            """(tasks) => Promise.all(tasks.map(async (task) => {
                const lines = [];
                await interop.read(task, (line) => lines.push(line));
                return JSON.stringify(lines);
            }))""",
            [{"url": url, **task} for url in urls],
        )
        return [Reading([tuple(line) for line in json.loads(lines)]) for lines in readings]
