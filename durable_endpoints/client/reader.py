"""What the asynchronous and the blocking form of a stream have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from durable_endpoints.client.call import Call
from durable_endpoints.client.events import Chunk, Commit, Log, Metadata, Progress, Rollback


class Reader:
    """What is known of a stream that is being read."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._talk = call.conversation

    @property
    def run_id(self) -> str | None:
        """The run's id, as soon as the server has named it."""
        return self._talk.run_id

    @property
    def run_url(self) -> str | None:
        """Where the run can be read on. It holds the run's token: whoever has it can read it."""
        return self._talk.run_url

    @property
    def last_event_id(self) -> str | None:
        """The position of the last event given. Store it with `run_url`, to go on elsewhere."""
        return self._talk.last_event_id

    @property
    def response(self) -> httpx.Response:
        """The endpoint's own response, when the iteration has come to its end.

        Raises `StreamError` before that.
        """
        return self._call.response


def callbacks_by_event(
    on_metadata: Callable[[Metadata], object] | None,
    on_data: Callable[[Chunk], object] | None,
    on_commit: Callable[[Commit], object] | None,
    on_rollback: Callable[[Rollback], object] | None,
    on_progress: Callable[[Progress], object] | None,
    on_log: Callable[[Log], object] | None,
) -> dict[type[Any], Callable[[Any], object]]:
    """The callbacks that were given, by the type of event that they are for."""
    callbacks: dict[type[Any], Callable[[Any], object] | None] = {
        Metadata: on_metadata,
        Chunk: on_data,
        Commit: on_commit,
        Rollback: on_rollback,
        Progress: on_progress,
        Log: on_log,
    }
    for kind, callback in callbacks.items():
        if callback is not None and not callable(callback):
            raise TypeError(f"the callback for {kind.__name__} is {callback!r}: give a function")
    return {kind: callback for kind, callback in callbacks.items() if callback is not None}
