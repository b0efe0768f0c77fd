"""What to ask next, and when, until there is an answer: the client's side of the wire. Pure.

A conversation is one call of the user's, over any number of connections:

* Until the first frame has come, the request itself is repeated. Its `Idempotency-Key` makes the
  server join the run that the first one started.
* From then on the run's own URL is read, from behind the last id seen.
* An id is seen when its frame is complete, and a frame whose id was seen is not told again. So
  wherever the connection is cut, each event is told exactly once.

The drivers ask (`asks`), say what came of it (`starts`, then `hears` or `answers`, or `breaks`),
and hand out the events (`take`) until the conversation `is_over`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from durable_endpoints.client.asking import Asking, resolve
from durable_endpoints.client.errors import StreamError
from durable_endpoints.client.events import Metadata, StreamEvent
from durable_endpoints.client.frames import Comment, Frame, FrameParser
from durable_endpoints.client.messages import METADATA, Ending, RunAddress, read_frame
from durable_endpoints.client.pacing import Pacing, seconds_to_wait

MAX_REDIRECTS = 20
"""In a row, as in httpx."""
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (429, 502, 503, 504)
"""Statuses by which a proxy, or an engine that is being restarted, says: not now."""


class Reading(Enum):
    """What the body of a response is read for."""

    NOTHING = auto()
    STREAM = auto()
    ANSWER = auto()


class Conversation:
    """One call's state.

    `give_up_after` is in seconds, counted from the last sign of life. `last_event_id` is where an
    earlier call, maybe in another process, has stopped reading the run.
    """

    def __init__(
        self,
        first: Asking,
        give_up_after: float,
        pacing: Pacing,
        last_event_id: str | None = None,
    ) -> None:
        self.run_id: str | None = None
        self.run_url: str | None = None
        self.last_event_id = last_event_id
        """The position of the last event handed out."""
        self.ending: Ending | None = None
        """The endpoint's response, out of the stream."""
        self.answer: Any = None
        """The response that is the answer itself, as the driver gave it."""
        self.delay = 0.0
        """Seconds to wait before the next request."""
        self._first = first if last_event_id is None else first.after(last_event_id)
        self._asked = self._first
        self._redirected: Asking | None = None
        self._redirects = 0
        self._give_up_after = give_up_after
        self._pacing = pacing
        self._progress = pacing.clock()
        self._failures = 0
        self._parser = FrameParser()
        self._has_begun = False
        self._last_id = last_event_id
        self._seen: set[str] = set()
        self._events: deque[StreamEvent] = deque()
        self._is_reader_busy = False

    @property
    def is_over(self) -> bool:
        """Whether there is an answer. Events may be left to be taken."""
        return self.ending is not None or self.answer is not None

    @property
    def is_at_home(self) -> bool:
        """Whether the caller's own origin was asked last."""
        return self._asked.is_at_home

    def take(self) -> StreamEvent | None:
        """The next event to hand out; None if there is none now."""
        if self._is_reader_busy:  # with the last event, and the network was not to blame for that
            self._progress = self._pacing.clock()
        self._is_reader_busy = bool(self._events)
        if not self._events:
            return None
        event = self._events.popleft()
        if not isinstance(event, Metadata):
            self.last_event_id = event.position or None
        return event

    def asks(self) -> Asking:
        """The request to send now."""
        if self._redirected is not None:
            self._asked, self._redirected = self._redirected, None
        else:
            self._redirects = 0
            self._asked = self._first
            if self._has_begun and self.run_url is not None:
                self._asked = self._first.for_run(self.run_url, self._last_id or "0")
        self.delay = 0.0
        return self._asked

    def starts(self, status: int, headers: Mapping[str, str]) -> Reading:
        """A response has begun. Names in `headers` are looked up in lower case."""
        if status in _REDIRECTS and "location" in headers:
            self._redirects += 1
            if self._redirects > MAX_REDIRECTS:
                raise StreamError(f"more than {MAX_REDIRECTS} redirects in a row")
            self._redirected = self._asked.redirected(status, headers["location"])
            return Reading.NOTHING
        self._redirects = 0
        if not self._has_begun:
            self.run_id = headers.get("durable-run-id")
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if status != 200 or content_type != "text/event-stream":
            return Reading.ANSWER
        self._parser = FrameParser()
        if self._asked.is_for_run:
            self.run_url = self._asked.url  # with all that the caller put in it, as `view`
        elif "durable-run-url" in headers:
            self.run_url = resolve(self._asked.url, headers["durable-run-url"])
        return Reading.STREAM

    def hears(self, data: bytes) -> None:
        """A piece of the stream has come. Raises `StreamError` if it is no durable stream."""
        for item in self._parser.feed(data):
            self._progress = self._pacing.clock()
            if isinstance(item, Comment):
                self._failures = 0
            elif self.ending is None:
                self._take_in(item)

    def answers(self, response: Any, status: int, headers: Mapping[str, str]) -> None:
        """A response that is no stream has come to its end."""
        if _is_passing(status, headers):
            wait = seconds_to_wait(headers.get("retry-after"), headers.get("date"))
            self._fails(response, self._pacing.delay(self._failures, wait))
        else:
            self.answer = response

    def breaks(self, error: BaseException | None) -> None:
        """The connection ended before its time: by `error`, or cleanly.

        Raises `error` when patience is over.
        """
        if error is not None:
            self._fails(error, self._pacing.delay(self._failures))
            return
        # A server that is being stopped ends its streams, and another one has the run already.
        delay = self._pacing.delay(self._failures) if self._failures else 0.0
        self._fails(StreamError("the stream ended without a response"), delay)

    def _fails(self, failure: Any, delay: float) -> None:
        left = self._progress + self._give_up_after - self._pacing.clock()
        if left > 0:
            self._failures += 1
            self.delay = min(delay, left)
        elif isinstance(failure, BaseException):
            raise failure
        else:
            self.answer = failure

    def _take_in(self, frame: Frame) -> None:
        if frame.id is not None and frame.event != METADATA:
            if frame.id in self._seen:
                return
            self._seen.add(frame.id)
            self._last_id = frame.id
            self._failures = 0
        message = read_frame(frame, self._last_id or "")
        if isinstance(message, Metadata):
            self._meet(message, frame.id)
        elif not self._has_begun and self.run_url is None:
            raise StreamError(
                f"this event stream begins with {frame.event!r}: it is the endpoint's own, no "
                "durable one. Read it with an ordinary client."
            )
        elif isinstance(message, Ending):
            self.ending = message
        elif isinstance(message, RunAddress):
            if self.run_url is None:
                self.run_url = resolve(self._asked.url, message.url)
        elif message is not None:
            self._events.append(message)

    def _meet(self, metadata: Metadata, position: str | None) -> None:
        if self._last_id is None:
            self._last_id = position
        if not self._has_begun:
            self._has_begun = True
            self.run_id = metadata.run_id
            self._events.append(metadata)
        elif metadata.run_id != self.run_id:
            raise StreamError(f"run {self.run_id} goes on as run {metadata.run_id}")


def _is_passing(status: int, headers: Mapping[str, str]) -> bool:
    """Whether the answer may be another one soon.

    One that names a run is that run's answer, unless it says that its engine was out of reach;
    and if by then a step's body had run, running it once more is the caller's decision.
    """
    if status not in _PASSING or "durable-step-executed" in headers:
        return False
    if "durable-run-status" in headers:
        return headers["durable-run-status"] == "unavailable"
    return "durable-run-id" not in headers
