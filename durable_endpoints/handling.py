"""The handler's own code: run, unwound when its run must wait, and left behind if it will not go.

Nothing here keeps the execution that it belongs to, which is handed in with each call: the two
would keep each other alive beyond their request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import anyio.from_thread

from durable_endpoints.calls import handle_in_thread
from durable_endpoints.errors import NotInRunError, UsageError
from durable_endpoints.hooks import Call
from durable_endpoints.protocol.failures import message_of
from durable_endpoints.unwinding import MAX_SIGNALS, CancelledInsideError, Suspended, drive

if TYPE_CHECKING:
    from durable_endpoints.call_sites import CallSites
    from durable_endpoints.execution import Execution

logger = logging.getLogger("durable_endpoints")


class Handling:
    """One run through a handler's code."""

    __slots__ = ("_signals", "escaped", "has_ended", "is_given_up", "returned", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None
        """The task that an `async` handler runs in."""
        self.has_ended = False
        """Whether it has returned, or raised."""
        self.escaped: BaseException | None = None
        """What it raised itself, before anything outside it could make an answer of it."""
        self.returned: type | None = None
        """The type of what it returned, if that can be no response of Starlette's."""
        self.is_given_up = False
        """Whether it does not give way, and is not waited for any more."""
        self._signals: tuple[Suspended, ...] = ()

    async def run(self, execution: Execution, handler: Call) -> Any:
        """Await the handler. When it was unwound, raise `Suspended`, whatever it made of that."""
        self.task = task = asyncio.current_task(execution.loop)
        assert task is not None
        before = task.cancelling()
        if execution.departure is not None:  # before it was reached, or while hooks ran
            raise Suspended
        if execution.around.run:
            handler = execution.around.wrap_run(execution.info, handler)
        try:
            result = await drive(handler(), self)
            if execution.departure is None:
                execution.calls.check_awaited()
        except BaseException as error:
            if execution.departure is None:
                if isinstance(error, asyncio.CancelledError) and task.cancelling() <= before:
                    error = CancelledInsideError("the handler")
                if isinstance(error, Exception) and "coroutine" in message_of(error):
                    error = _mistaken_for_result(error, execution.calls)
                self.escaped = error
                raise error
            while task.cancelling() > before:
                task.uncancel()
            if not isinstance(error, Suspended | asyncio.CancelledError | BaseExceptionGroup):
                self._report_swallowed(execution, f"it raised {type(error).__name__} instead")
            raise Suspended from None
        else:
            if execution.departure is not None:
                self._report_swallowed(execution, "it ran to its end")
                raise Suspended
            execution.check_replay()
            if not callable(result):
                self.returned = type(result)
            return result
        finally:
            self.has_ended = True
            execution.handler_ended()

    def run_in_thread(self, execution: Execution, handler: Callable[[], Any]) -> Any:
        """The same for a plain handler, in its worker thread."""
        if execution.departure is not None:
            raise Suspended
        try:
            result = _inside_hooks(execution, handler) if execution.around.run else handler()
        except BaseException as error:
            if execution.departure is None:
                if isinstance(error, asyncio.CancelledError):
                    error = CancelledInsideError("the handler")
                self.escaped = error
                raise error
            if not isinstance(error, Suspended) and self._signals:
                self._report_swallowed(execution, f"it raised {type(error).__name__} instead")
            raise Suspended from None
        else:
            if execution.departure is not None:
                if self._signals:  # else it only ran on, while its run was ended elsewhere
                    self._report_swallowed(execution, "it ran to its end")
                raise Suspended
            execution.check_replay()
            if not callable(result):
                self.returned = type(result)
            return result
        finally:
            execution.call_soon(self._end_in_thread, execution)

    def _end_in_thread(self, execution: Execution) -> None:
        self.has_ended = True
        execution.handler_ended()

    # Unwinding

    def signal(self) -> Suspended:
        """What to raise where the handler waits, or calls a step in vain."""
        signal = Suspended()
        self._signals += (signal,)
        return signal

    def cancel(self) -> None:
        """Unwind it where it waits for tasks of its own: only a cancellation ends those as well."""
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    async def refuse(self, execution: Execution, has_run: bool) -> NoReturn:
        """Stop whoever wants a step that is not possible any more, or whose body `has_run` in vain.

        What unwinds a handler can be caught. One that does so again and again would keep the event
        loop to itself, so after some times it waits here for ever, and is given up. A thread cannot
        be given up; it is slowed down.
        """
        in_thread = execution.is_in_thread
        stray = not in_thread and asyncio.current_task() is not self.task
        if stray and self.has_ended and (has_run or execution.departure is not None):
            raise asyncio.CancelledError("the handler has ended")
        if execution.departure is None:
            raise NotInRunError(
                "the handler of this run has returned its response. Response iterators, background "
                "tasks and tasks left behind run after that and cannot have steps: do the work in "
                "a step before the handler returns"
            )
        if len(self._signals) >= MAX_SIGNALS:
            execution.give_up()
            await (asyncio.sleep(1) if in_thread else asyncio.get_running_loop().create_future())
        raise self.signal()

    def give_up(self) -> bool:
        """Wait no longer for it to give way: leave it where it is. False if that was done."""
        if self.is_given_up:
            return False
        self.is_given_up = True
        if self.task is not None and not self.has_ended:
            self.task.cancel()
        return True

    def forget_frames(self) -> None:
        """The signals keep the frames alive through which they went."""
        self._signals = tuple(signal.with_traceback(None) for signal in self._signals)

    @property
    def was_signalled(self) -> bool:
        """Whether it has been told that it shall end."""
        return bool(self._signals)

    def swallower(self) -> str:
        """Where the signal was caught, if it can be told."""
        for signal in self._signals:
            trace = signal.__traceback__
            if trace is not None:
                code = trace.tb_frame.f_code
                return f", in {code.co_qualname} ({code.co_filename}:{trace.tb_lineno})"
        return ""

    def _report_swallowed(self, execution: Execution, what: str) -> None:
        logger.error(
            "run %s (%s): the handler caught the signal that unwinds it while it waits%s: %s. The "
            "run goes on, but what the handler did from there counts for nothing. Catch Exception "
            "rather than BaseException or asyncio.CancelledError around steps",
            execution.info.run_id,
            execution.info.function_id,
            self.swallower(),
            what,
        )


def _mistaken_for_result(error: Exception, calls: CallSites) -> Exception:
    """What Python says of a coroutine that is used like the value it would give, explained."""
    try:
        calls.check_awaited()
    except UsageError as mistake:
        mistake.__cause__ = error
        return mistake
    return error


def _inside_hooks(execution: Execution, handler: Callable[[], Any]) -> Any:
    """Run a plain handler in another thread, while hooks are around it on the event loop."""

    async def call() -> Any:
        return await handle_in_thread(handler)

    async def handle() -> Any:
        return await execution.around.wrap_run(execution.info, call)()

    return anyio.from_thread.run(handle, token=execution.token)
