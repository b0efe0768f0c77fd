"""How one execution ends: its response kept, or its departure written, and its client answered.

Whatever happens inside the application, exactly one of these is done, once:

- the response is complete: it is recorded, and only then its last message is sent;
- the execution departed: the run is suspended, released or given up, and the client is told where
  its answer will be, or what went wrong;
- an exception escaped the handler: it is tried again later, or the run fails with what the
  application makes of it;
- a re-entry never reached the handler: the pass is tried again later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from starlette.types import Message

from durable_endpoints.answers import with_whole_location
from durable_endpoints.bodies import delay_of, is_final
from durable_endpoints.capture import Capture
from durable_endpoints.engines.base import Outcome
from durable_endpoints.errors import EngineError, LimitError, LostRunError, StepError
from durable_endpoints.execution import Departure, Execution
from durable_endpoints.failing import error_response, explained, is_handled
from durable_endpoints.hooks import Result, notify
from durable_endpoints.protocol import failures
from durable_endpoints.protocol.ops import StepKind, StepRetry
from durable_endpoints.protocol.runs import Complete, Fail
from durable_endpoints.protocol.step_ids import HANDLER_STEP
from durable_endpoints.reply import Reply

if TYPE_CHECKING:
    from durable_endpoints.door import Door

logger = logging.getLogger("durable_endpoints")

_COMPLETED = Result("completed")

_UNWIND_GRACE = 5.0
"""Seconds that a handler may take to unwind before its client is answered without it."""
_STANDSTILL = 0.5
"""Seconds that the event loop is late when it, or all of the process, has stood still: then the
handler could not unwind either."""


_concluding: set[asyncio.Task[None]] = set()


def _concluded(task: asyncio.Task[None]) -> None:
    _concluding.discard(task)
    if not task.cancelled():
        task.exception()  # raised where it is awaited, if anybody still does


class CutOffError(RuntimeError):
    """A response that had begun cannot be ended: the server shall cut the connection."""


class Ending:
    """The one place where an execution ends."""

    def __init__(self, door: Door, execution: Execution, reply: Reply) -> None:
        limit = door.application.settings.max_response_body
        method = door.snapshot["method"]
        self.capture = Capture(door.send_out, reply.run_id, method, limit)
        self._door = door
        self._execution = execution
        self._session = execution.session
        self._reply = reply
        self._answering: asyncio.Task[None] | None = None
        """The answer to a client that has waited long enough."""
        self._departing: asyncio.Task[None] | None = None
        """The departure, if it was not left to the application's own task."""
        self._begun = False
        self._grace: asyncio.TimerHandle | None = None
        """When a handler that is being unwound is given up."""
        self.capture.is_reentry = door.reentry is not None
        self.capture.is_detached = self.capture.is_reentry or reply.is_stream
        execution.keeper = self
        if execution.departure is not None:
            self.departs()

    @property
    def is_stream(self) -> bool:
        """Whether the client gets the run's stream."""
        return self._reply.is_stream

    # A complete response

    async def send(self, message: Message) -> None:
        """The application's `send`."""
        capture = self.capture
        if not capture.take(message):
            return
        if capture.is_complete and self._may_be_a_failure():
            return  # `conclude` tells
        if not capture.is_complete or await self._complete():
            await self._pass_on()

    async def _pass_on(self) -> None:
        """Give the client what it may have of the response now."""
        capture, reply = self.capture, self._reply
        await capture.release()
        if reply.is_stream and capture.is_complete:
            if capture.is_event_stream:
                logger.warning(
                    "%s sends an event stream of its own, which its client gets as the text of one "
                    "frame at the end of the run's stream: @endpoint(sse=False) lets it through",
                    self._execution.info.function_id,
                )
            if capture.too_large:
                await reply.outcome(
                    Outcome(reply.run_id, "completed", "", None, "too_large", False, "", "", "")
                )
            else:
                await reply.stored(
                    with_whole_location(capture.response(), self._door.snapshot["path"])
                )

    def _may_be_a_failure(self) -> bool:
        """Whether this response may be what a mounted application makes of an exception that
        nothing in it handles: then it raises it again, once the response is out."""
        error = self._execution.handling.escaped
        return isinstance(error, Exception) and not is_handled(self._door.scope, error)

    async def _complete(self) -> bool:
        """The application's response is complete: keep it. Whether its end may be sent."""
        execution = self._execution
        if execution.departure is not None or self._begun:
            return False
        self._begun = True
        try:
            await self._session.end(self._completion())
        except EngineError as error:
            self._begun = False
            execution.break_off(error)
            return False
        except asyncio.CancelledError:
            # From outside, while the record is on its way to the disk. The run ends all the same.
            execution.close()
            self._finish(_COMPLETED)
            if self._door.engine.is_running:
                self._door.engine.spawn(self._see_to_it(), "complete a run")
            raise
        execution.close()
        self._finish(_COMPLETED)
        return True

    def _completion(self) -> Complete:
        """What is kept of the response, as the endpoint's options say."""
        options, capture = self._execution.options, self.capture
        if capture.too_large:
            return Complete(
                capture.status, None, "too_large", omit_request_body=options.omit_request_body
            )
        if options.omit_response_body and not capture.is_detached:
            # A client that is being answered needs no copy; one that will ask needs it once.
            return Complete(
                capture.status, None, "not_kept", omit_request_body=options.omit_request_body
            )
        response = capture.response()
        if capture.is_detached:
            response = with_whole_location(response, self._door.snapshot["path"])
        packed = self._door.engine.pack_response(self._session.id, response)
        return Complete(
            capture.status, packed, "", options.omit_response_body, options.omit_request_body
        )

    async def _see_to_it(self) -> None:
        try:
            await self._session.acknowledge()
        except EngineError:
            await self._session.abandon()

    # A client that has waited long enough

    def respond_now(self) -> None:
        """Tell the client where its answer will be, while the execution goes on."""
        if not self._begun and not self._reply.is_given and not self.capture.has_sent:
            self._answering = self._door.engine.spawn(self._respond_now(), "answer a client")

    async def _respond_now(self) -> None:
        try:
            await self._session.acknowledge()
        except EngineError:
            return  # the execution meets the same failure, and ends with it
        if not self._begun and not self.capture.has_sent:
            self.capture.is_detached = True
            await self._reply.later(self._execution.options)

    # Everything else

    def conclude(self, error: BaseException | None) -> Awaitable[None]:
        """The application returned, or raised `error`. Raises what the server shall see."""
        if self._reply.is_stream:
            return self._conclude_stream(error)
        return self._conclude_once(error)

    async def _conclude_stream(self, error: BaseException | None) -> None:
        try:
            await self._conclude_once(error)
        finally:
            # Whatever came in between: the client is told where to ask, at least.
            await self._reply.later(self._execution.options)
            await self._reply.closed()

    async def _conclude_once(self, error: BaseException | None) -> None:
        execution = self._execution
        if self._answering is not None:
            # The application is not over before its client has the answer that was promised.
            await asyncio.shield(self._answering)
        if self._begun and self.capture.is_complete and execution.departure is None:
            if error is not None:
                raise error  # of a background task, say: the response is out, so it is only logged
            return
        # Whoever cancels the request from now on must not leave the run between two states.
        concluding = asyncio.ensure_future(self._conclude(error))
        _concluding.add(concluding)
        concluding.add_done_callback(_concluded)
        await asyncio.shield(concluding)

    async def _conclude(self, error: BaseException | None) -> None:
        execution = self._execution
        is_complete = self.capture.is_complete and execution.departure is None
        if is_complete and not self._begun and error is None and await self._complete():
            await self._pass_on()
        if is_complete and self._begun and execution.departure is None:
            if error is not None:
                raise error  # of a background task, say: the response is out, so it is only logged
            return
        if execution.departure is None:
            if isinstance(error, Exception) or error is None:
                await self._handler_failed(error or RuntimeError("the application did not answer"))
                return
            if self._door.reentry is not None and not execution.is_draining:
                # A middleware that has no patience: without the budget of retries, for ever.
                await self._handler_failed(RuntimeError(f"{type(error).__name__} from outside"))
                raise error
            # Cancelled from outside, or the process is being ended.
            execution.depart(Departure.HANDOVER)
            await self._depart()
            raise error
        await self._depart()
        if self.capture.has_sent:
            raise CutOffError("the response had begun, and its run goes on without this client")

    def departs(self) -> None:
        """From here on the application is not heard; if it does not end soon, not waited for."""
        self.capture.is_muted = True
        self._wait_for_handler()

    def _wait_for_handler(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _UNWIND_GRACE
        self._grace = loop.call_at(until, self._give_up, until)

    def _give_up(self, until: float) -> None:
        if self._begun:
            return
        if asyncio.get_running_loop().time() > until + _STANDSTILL:
            self._wait_for_handler()
        else:
            self._execution.give_up()

    def leave_behind(self) -> None:
        """Answer the client without the handler."""
        if not self._begun:
            execution = self._execution
            if execution.is_in_thread and not execution.handling.was_signalled:
                what, advice = "is still running in its thread, which cannot be stopped", ""
            else:
                what = f"does not give way to what unwinds it{execution.handling.swallower()}"
                advice = (
                    ". Catch Exception rather than BaseException or asyncio.CancelledError around "
                    "steps"
                )
            logger.error(
                "run %s (%s): the handler %s: it is left where it is, and its client is answered "
                "without it%s",
                execution.info.run_id,
                execution.info.function_id,
                what,
                advice,
            )
            self._departing = self._door.engine.spawn(self._depart(), "answer a client")

    async def _depart(self) -> None:
        """Write the departure, and answer the client."""
        if self._begun:
            if self._departing is not None and self._departing is not asyncio.current_task():
                await asyncio.shield(self._departing)
            return
        self._begun = True
        self.capture.is_muted = True
        execution, reply = self._execution, self._reply
        result = Result("suspended")
        try:
            try:
                await self._write_departure()
            except EngineError as error:
                execution.error = error
                lost = isinstance(error, LostRunError)
                execution.departure = Departure.LOST if lost else Departure.BROKEN
            if execution.departure is Departure.BROKEN:
                result = Result("lost", execution.error)
                await self._session.abandon()
            if self.capture.has_sent:
                return
            if execution.departure is Departure.STOPPED:
                result = Result("failed")
                status = "cancelled" if execution.stop_reason == "cancelled" else "failed"
                await reply.ended(status, execution.stop_reason)
            elif execution.departure is Departure.BROKEN:
                assert execution.error is not None
                detail = execution.error.explanation
                await reply.unavailable(detail, str(execution.last_step or ""))
            else:
                if execution.departure is Departure.LOST:
                    result = Result("lost", execution.error)
                await reply.later(execution.options)
        finally:
            self._finish(result)

    async def _write_departure(self) -> None:
        departure = self._execution.departure
        if departure is Departure.WAITING:
            await self._session.suspend()
        elif departure is Departure.HANDOVER:
            await self._session.release("released")

    async def _handler_failed(self, error: Exception) -> None:
        """An exception escaped: try again as long as the endpoint's retries allow."""
        execution = self._execution
        error = explained(error, execution.handling.returned, execution.info.function_id)
        record = execution.memo.get(HANDLER_STEP.hash)
        attempt = 1 if record is None else record.attempt + 1
        failure = failures.describe(error).encode()
        if isinstance(error, StepError) or is_final(error, attempt, execution.options.retries):
            await self._fail_for_good(error, failure)
            return
        delay = delay_of(error, self._door.engine.now())
        # Steps that run beside it are heard out, or they would run again beside themselves.
        await execution.bodies_end()
        if execution.departure is not None:
            await self._depart()
            return
        try:
            op = StepRetry(HANDLER_STEP, StepKind.HANDLER, failure, attempt, 0, delay)
            self._session.record(op)
        except LimitError as limit:
            await self._fail_for_good(limit, failures.describe(limit).encode())
            return
        except EngineError as engine_error:
            execution.break_off(engine_error)
        described = failures.describe(error)
        logger.warning(
            "run %s (%s): %s%s; try %d of %d",
            execution.info.run_id,
            execution.info.function_id,
            described,
            f" (at {described.at})" if described.at else "",
            attempt,
            execution.options.retries + 1,
        )
        execution.depart(Departure.WAITING)
        await self._depart()
        if self.capture.has_sent:
            raise error

    async def _fail_for_good(self, error: Exception, failure: bytes) -> None:
        execution, options = self._execution, self._execution.options
        response, fail = None, Fail("exception", failure)
        if not self.capture.has_sent:
            response = await error_response(self._door.scope, error)
            fail = Fail(
                "exception",
                failure,
                response.status,
                self._door.engine.pack_response(self._session.id, response),
                options.omit_response_body,
                options.omit_request_body,
            )
        self._begun = True
        try:
            await self._session.end(fail)
        except EngineError as engine_error:
            self._begun = False
            execution.break_off(engine_error)
            await self._depart()
            return
        execution.close()
        self.capture.is_muted = True
        self._finish(Result("failed", error))
        if response is not None:
            await self._reply.stored(response, succeeded=False)
        raise error

    def _finish(self, result: Result) -> None:
        door, execution = self._door, self._execution
        if door.queue is not None:
            door.queue.remove(self)
        if door.on_left is not None:
            door.on_left()
        door.application.left(door)
        if self._grace is not None:
            self._grace.cancel()
        execution.keeper = None
        if execution.hooks:
            calls = [hook.after_run(execution.info, result) for hook in execution.hooks]
            self._door.engine.spawn(notify(calls), "after_run")
