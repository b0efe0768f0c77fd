"""Language models' APIs that break off when they are told to."""

from __future__ import annotations

from typing import Any

import httpx

PAUSE = 0.003
"""Seconds between two chunks of a model."""


class Llmock:
    """llmock's server, at `url`. Each test talks to a model of its own name, which is scripted."""

    def __init__(self, url: str) -> None:
        self.url = url

    def says(self, model: str, text: str) -> None:
        self._add({"type": "reply", "text": text, "times": None, "match": {"model": model}})

    def breaks(self, model: str, kind: str, after: int, **options: Any) -> None:
        """Once, after that many chunks of the wire. Breaks add up: one for each request."""
        match = {"model": model, "stream": True}
        fault = {"type": "stream_fault", "kind": kind, "after_chunks": after}
        self._add({**fault, "match": match, **options})

    def faults(self, model: str) -> list[str | None]:
        """Of each request that was answered, the fault it met."""
        told = httpx.get(f"{self.url}/_llmock/requests").raise_for_status().json()["requests"]
        return [request["fault"] for request in told if request["model"] == model]

    def _add(self, behavior: dict[str, Any]) -> None:
        scenario = {"behaviors": [behavior]}
        httpx.post(f"{self.url}/_llmock/scenario", json=scenario).raise_for_status()
