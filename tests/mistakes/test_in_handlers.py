"""Mistakes in a handler's code: each is an error of the first request, and says what to write."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from durable_endpoints import (
    DurableEndpointsError,
    RetryAfterError,
    Saga,
    StepError,
    configure,
    endpoint,
    send_event,
    step,
    stream,
)
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import one
from tests.mistakes.corpus import Corpus, Mistake, assert_told

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

corpus = Corpus()
mistake = corpus.says


def work(n: int = 1) -> int:
    return n


async def work_async(n: int = 1) -> int:
    return n


def ok() -> Response:
    return PlainTextResponse("ok")


# What is run


@mistake("step 'a' was called but never awaited", "write `await` before it")
async def forgotten_await(request: Request) -> Response:
    step.run("a", work)  # here
    return ok()


@mistake("step 'a' was called but never awaited", "write `await` before it")
async def forgotten_await_of_a_value_that_is_used(request: Request) -> Response:
    value: Any = step.run("a", work)  # here
    return JSONResponse({"value": value + 1})


@mistake("step 'a' was called but never awaited", "before the handler returns")
async def task_that_nobody_awaits(request: Request) -> Response:
    task = asyncio.create_task(step.run("a", work_async))  # here
    task.add_done_callback(lambda task: task.exception())  # too late
    return ok()


@mistake("the coroutine of work_async(…), which would run at once", "pass the function itself")
async def coroutine_in_place_of_a_function(request: Request) -> Response:
    await step.run("a", work_async())  # here
    return ok()


@mistake("was given 1, which is no function", "pass the function itself", "arguments after it")
async def result_in_place_of_a_function(request: Request) -> Response:
    await step.run("a", work())  # here
    return ok()


@mistake("was given no name", 'step.run("work", …)')
async def no_name(request: Request) -> Response:
    await step.run(work)  # here
    return ok()


@mistake("was given no name", 'step.run("work", …)')
async def name_and_function_in_the_wrong_order(request: Request) -> Response:
    await step.run(work, "a")  # here
    return ok()


@mistake("a step's id is a text of 1 to 1024 letters, not 5", "step.run(f'item-{n}', …)")
async def number_as_a_name(request: Request) -> Response:
    await step.run(5, work)  # here
    return ok()


@mistake("a step's id is a text of 1 to 1024 letters, not an empty one")
async def empty_name(request: Request) -> Response:
    await step.run("", work)  # here
    return ok()


@mistake("a text of 1 to 1024 letters, not one of 2,000 letters")
async def prompt_as_a_name(request: Request) -> Response:
    await step.run("x" * 2_000, work)  # here
    return ok()


@mistake("step 'a' is called again while it is still running", 'f"a-{i}"')
async def one_name_for_all_items(request: Request) -> Response:
    sleeps = [step.run("a", asyncio.sleep, 0.01) for _ in range(2)]  # here
    await asyncio.gather(*sleeps)
    return ok()


@mistake("step 'a' has arguments that do not fit", "takes from 0 to 1 positional arguments")
async def too_many_arguments(request: Request) -> Response:
    await step.run("a", work, 1, 2)  # here
    return ok()


@mistake("step 'a' has arguments that do not fit", "step.options(…).run('a', …)")
async def settings_among_the_arguments(request: Request) -> Response:
    await step.run("a", work, retries=5)  # here
    return ok()


@mistake("retries='5': give a whole number from 0 to 20")
async def retries_as_text(request: Request) -> Response:
    await step.options(retries="5").run("a", work)  # here
    return ok()


@mistake("timeout: 'soon' is not a duration", 'write "30s"')
async def timeout_that_is_none(request: Request) -> Response:
    await step.options(timeout="soon").run("a", work)  # here
    return ok()


# Where


@mistake("step.run('b') is called inside the body of step 'a'", "call one after the other")
async def step_in_a_step(request: Request) -> Response:
    async def outer() -> int:
        return await step.run("b", work)  # here

    await step.run("a", outer)
    return ok()


@mistake("step.sleep('b') is called inside the body of step 'a'", "call one after the other")
async def sleep_in_a_step(request: Request) -> Response:
    async def outer() -> None:
        await step.sleep("b", "1h")  # here

    await step.run("a", outer)
    return ok()


@mistake("step.sync.run('a') would block the event loop", "`await step.run('a')`")
async def blocking_step_in_an_async_handler(request: Request) -> Response:
    step.sync.run("a", work)  # here
    return ok()


@mistake("step.run('a') is called in a plain `def` handler", "step.sync.run('a')")
def async_step_in_a_plain_handler(request: Request) -> Response:
    step.run("a", work)  # here
    return ok()


@mistake("step.run('a') is called in a thread", "step.sync.run('a')")
async def loop_of_its_own_in_a_thread(request: Request) -> Response:
    def thread() -> int:
        return asyncio.run(step.run("a", work))  # here

    await asyncio.to_thread(thread)
    return ok()


@mistake("was given the coroutine function work_async", "`await step.run('a', …)`")
def coroutine_function_in_a_plain_handler(request: Request) -> Response:
    step.sync.run("a", work_async)  # here
    return ok()


@mistake("background tasks", "do the work in a step before the handler returns")
async def step_in_a_background_task(request: Request) -> Response:
    async def later() -> None:
        await step.run("a", work)  # here

    return PlainTextResponse("ok", background=BackgroundTask(later))


@mistake("Response iterators", "do the work in a step before the handler returns")
async def step_in_a_response_iterator(request: Request) -> Response:
    async def rows() -> AsyncIterator[str]:
        yield str(await step.run("a", work))  # here

    return StreamingResponse(rows())


@mistake("`with Saga()` would block the event loop", "`async with Saga()`")
async def blocking_saga_in_an_async_handler(request: Request) -> Response:
    with Saga():  # here
        return ok()


@mistake("saga.add_compensation('b'): the arguments do not fit work", "follow the function")
async def compensation_with_wrong_arguments(request: Request) -> Response:
    async with Saga() as saga:
        saga.add_compensation("b", work, 1, 2)  # type: ignore[call-arg]  # here
    return ok()


# Values


@mistake("the result of step 'a' cannot be kept: at $.seen: a set", "use a list")
async def set_as_a_result(request: Request) -> Response:
    await step.run("a", lambda: {"seen": {1, 2}})  # here
    return ok()


@mistake("at $[0].when: a datetime is not a JSON value", "isoformat()", "annotation")
async def datetime_as_a_result(request: Request) -> Response:
    await step.run("a", lambda: [{"when": datetime.now()}])  # here
    return ok()


@mistake("at $.x: the key 1 is not a string")
async def numbers_as_keys(request: Request) -> Response:
    await step.run("a", lambda: {"x": {1: 2}})  # here
    return ok()


@mistake("at $: nan has no JSON form", "use None or a string")
async def not_a_number(request: Request) -> Response:
    await step.run("a", lambda: float("nan"))  # here
    return ok()


@mistake("a generator is not a JSON value", "collect what it gives in a list")
async def generator_as_a_result(request: Request) -> Response:
    await step.run("a", lambda: (n for n in range(3)))  # here
    return ok()


@mistake("says it returns Request, which cannot be kept", "Return its data instead")
async def result_that_no_type_can_keep(request: Request) -> Response:
    def connection() -> Request:
        return request

    await step.run("a", connection)  # here
    return ok()


@mistake("at $: None, where the function is annotated to return datetime", "return one, or")
async def result_that_is_missing(request: Request) -> Response:
    def found() -> datetime:
        return None  # type: ignore[return-value]

    await step.run("a", found)  # here
    return ok()


@mistake("more than the 4,194,304 of one step (max_result)", "return a reference")
async def huge_result(request: Request) -> Response:
    await step.run("a", lambda: "x" * 5_000_000)  # here
    return ok()


@mistake("the data of event 'order/paid' is not JSON", "use a list")
async def event_with_a_set(request: Request) -> Response:
    await step.send_event("a", "order/paid", {1, 2})  # here
    return ok()


@mistake("the data of event 'order/paid' is not JSON: at $.order: an object")
async def event_with_an_object(request: Request) -> Response:
    await send_event("order/paid", {"order": object()})  # here
    return ok()


@mistake("the event name {'order': 1} is not a printable text")
async def event_of_a_step_without_a_name(request: Request) -> Response:
    await step.send_event("order/paid", {"order": 1})  # here
    return ok()


@mistake("stream.push: the value cannot be streamed: at $: a set", "use a list")
async def streamed_set(request: Request) -> Response:
    stream.push({1, 2})  # here
    return ok()


@mistake("stream.pipe cannot read int", "give an (async) iterator of text or bytes")
async def pipe_of_a_number(request: Request) -> Response:
    await stream.pipe(5)  # here
    return ok()


@mistake("stream.pipe got a dict from its source", "stream.push()")
async def pipe_of_dicts(request: Request) -> Response:
    async def rows() -> AsyncIterator[Any]:
        yield {"a": 1}

    await stream.pipe(rows())  # here
    return ok()


# Time


@mistake("step 'a': '5 minutes' is not a duration", '"1h30m"')
async def duration_in_words(request: Request) -> Response:
    await step.sleep("a", "5 minutes")  # here
    return ok()


@mistake("-5 is not a duration: it must be finite and not negative")
async def negative_duration(request: Request) -> Response:
    await step.sleep("a", -5)  # here
    return ok()


@mistake("None is not a duration", 'write "30s"')
async def setting_that_is_not_set(request: Request) -> Response:
    await step.sleep("a", None)  # here
    return ok()


@mistake("3,000.0 days are more than a wait may last: 366.0 days", "Wait in several steps")
async def sleep_of_years(request: Request) -> Response:
    await step.sleep("a", "3000d")  # here
    return ok()


@mistake("2030-01-01T00:00:00 has no time zone", "give a datetime with a time zone")
async def naive_time(request: Request) -> Response:
    await step.sleep_until("a", datetime(2030, 1, 1))  # here
    return ok()


@mistake("'tomorrow' is not a time", '"2027-01-04T09:00:00+01:00"')
async def time_in_words(request: Request) -> Response:
    await step.sleep_until("a", "tomorrow")  # here
    return ok()


@mistake("RetryAfterError(…, 'later'): 'later' is not a duration", 'write "30s"')
async def retry_after_in_words(request: Request) -> Response:
    def limited() -> None:
        raise RetryAfterError("too many requests", "later")  # here

    await step.run("a", limited)
    return ok()


# Events


@mistake("which this request has not (it has customer)", "name an input", "match={'data.order'")
async def match_on_what_the_request_has_not(request: Request) -> Response:
    await step.wait_for_event("a", event="paid", match="data.order", timeout="1h")  # here
    return ok()


@mistake("match path 'order'", 'write "data." and the names below it')
async def match_without_data(request: Request) -> Response:
    await step.wait_for_event("a", event="paid", match="order", timeout="1h")  # here
    return ok()


@mistake("list cannot be compared, only strings, numbers and booleans can")
async def match_with_a_list(request: Request) -> Response:
    match = {"data.order": [1, 2]}
    await step.wait_for_event("a", event="paid", match=match, timeout="1h")  # here
    return ok()


@mistake("is not CEL, which has &&, || and !", "mismatched input 'and'")
async def condition_in_python(request: Request) -> Response:
    condition = "async.data.total > 100 and true"
    await step.wait_for_event("a", event="paid", if_exp=condition, timeout="1h")  # here
    return ok()


@mistake("looks at nothing of the event", '"async.data.total > 100"')
async def condition_on_nothing(request: Request) -> Response:
    await step.wait_for_event("a", event="paid", if_exp="data.total > 100", timeout="1h")  # here
    return ok()


@mistake("give a CEL condition as text", '"async.data.total > 100"')
async def condition_as_a_lambda(request: Request) -> Response:
    condition: Any = lambda event: event.data["total"] > 100  # noqa: E731
    await step.wait_for_event("a", event="paid", if_exp=condition, timeout="1h")  # here
    return ok()


@mistake("the event name '' is not a printable text of 1 to 512 letters")
async def empty_event_name(request: Request) -> Response:
    await step.wait_for_event("a", event="", timeout="1h")  # here
    return ok()


@mistake("wait_for_any was given 'paid'", "a list of event names, or a mapping")
async def any_of_one_name(request: Request) -> Response:
    await step.wait_for_any("a", "paid", timeout="1h")  # here
    return ok()


# Other services


@mistake("was given work, which is not decorated with @endpoint", "step.run('a', …)")
async def invoked_function(request: Request) -> Response:
    await step.invoke("a", work)  # here
    return ok()


@mistake("was given the coroutine of", "pass the decorated handler itself", "params={…}")
async def coroutine_that_is_invoked(request: Request) -> Response:
    @endpoint
    async def other(request: Request) -> Response:
        return ok()

    made: Any = other(request)
    await step.invoke("a", made)  # here
    return ok()


@mistake("is on no route of this application", "Add it to the application")
async def invoked_endpoint_on_no_route(request: Request) -> Response:
    @endpoint
    async def nowhere(request: Request) -> Response:
        return ok()

    await step.invoke("a", nowhere)  # here
    return ok()


@mistake("'/page' is no whole URL", "begin it with https://")
async def relative_url(request: Request) -> Response:
    await step.fetch("a", "GET", "/page")  # here
    return ok()


@mistake("'/page' is no whole URL", "begin it with https://")
async def relative_url_in_a_gather(request: Request) -> Response:
    fetches = [step.fetch(f"page-{n}", "GET", "/page") for n in range(2)]  # here
    await asyncio.gather(*fetches)
    return ok()


@mistake("step.progress: current=-1", "give a number from 0 on")
async def negative_progress(request: Request) -> Response:
    step.progress(-1)  # here
    return ok()


# Options


@mistake("cannot change 'respond_within' during a run", "give it to @endpoint")
async def option_that_is_fixed(request: Request) -> Response:
    configure(respond_within="5s")  # here
    return ok()


@mistake("unknown option 'retry'", "did you mean 'retries'?")
async def option_with_a_typing_error(request: Request) -> Response:
    configure(retry=5)  # here
    return ok()


# A failure that is nobody's mistake


def declined() -> None:
    raise ValueError("card declined")


@mistake("step 'charge' failed once: ValueError: card declined")
async def failure_that_nobody_catches(request: Request) -> Response:
    await step.run("charge", declined)  # here
    return ok()


@pytest.mark.parametrize("mistake", corpus.mistakes, ids=str)
async def test_a_mistake_is_told(engine: VirtualEngine, mistake: Mistake) -> None:
    errors: list[Exception] = []

    async def on_error(request: Request, error: Exception) -> Response:
        errors.append(error)
        return PlainTextResponse("sorry", 500)

    app = one(engine, endpoint(retries=0)(mistake.code))
    app.add_exception_handler(500, on_error)
    async with engine.client(app) as client:
        response = await asyncio.wait_for(client.get("/?customer=7"), 5)
        assert ".py" not in response.text
    error = errors[0]
    assert isinstance(error, DurableEndpointsError)
    notes = getattr(error, "__notes__", []) if isinstance(error, StepError) else []
    assert_told(mistake, "\n".join([str(error), *notes]))
    if "never awaited" in str(error):
        errors.clear()
        del error
        gc.collect()  # Python says so too: now, and not in the middle of another test
