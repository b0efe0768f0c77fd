"""`survives_crashes`: a scenario again and again, with a crash at another place each time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import httpx
import orjson
from starlette.types import ASGIApp

from durable_endpoints.coding import Coding
from durable_endpoints.hooks import Hook
from durable_endpoints.protocol.ops import FROM_OUTSIDE, StepKind
from durable_endpoints.testing.engine import VirtualEngine
from durable_endpoints.testing.looking import values_of
from durable_endpoints.testing.script import WHENS, When

T = TypeVar("T")
Scenario = Callable[[httpx.AsyncClient], Awaitable[T]]

_SHOWN = 300
"""Letters of a value in a message."""

_TOLD = 10
"""Crashes in a message: most often all of them tell the same."""


async def survives_crashes(
    app: ASGIApp,
    scenario: Scenario[T],
    *,
    prepare: Callable[[VirtualEngine], object] | None = None,
    ignore: Collection[str] = (),
    hooks: Sequence[Hook] = (),
    whens: Collection[When] = WHENS,
    lifespan: bool = False,
    **settings: Any,
) -> T:
    """Assert that `app` gives the same answers wherever its process is lost, and return what the
    scenario returns.

        async def scenario(client: httpx.AsyncClient) -> httpx.Response:
            return await client.post("/orders", json=order, follow_redirects=True)

        await survives_crashes(app, scenario)

    `scenario(client)` is played once undisturbed, and then once for each of the steps that it has
    had, and each of `whens` (see `VirtualEngine.crash_at`), on a new engine, with a crash there
    and a new process after it. What it returns must be the same each time (of a response, the
    status and the body), and so must be the responses and the values of the steps of all runs.

    In a play time passes by itself, `durable_endpoints.send_event` sends events, and the client
    does what a good one does: it sends an `Idempotency-Key`, and repeats a request whose
    connection broke. The application object is the same in all plays, so the scenario has to set
    back what it keeps in memory. `prepare(engine)` may replace steps or let them fail before each
    play; `ignore` names steps whose values may differ, such as a new random id each time. Give the
    application's `hooks` if they encode step data: values are compared as they decode them, because
    encrypted ones differ each time. `settings` are those of `VirtualEngine`.

    Raises `AssertionError` that lists each crash after which something was different.
    """

    async def play(crash: _Crash | None) -> _Play:
        engine = VirtualEngine(auto_advance=True, supervised=True, **settings)
        if prepare is not None:
            prepare(engine)
        if crash is not None:
            engine.crash_at(crash.step, crash.when)
        async with engine.client(app, lifespan=lifespan, reconnects=True) as client:
            result = await scenario(client)
            runs = await _finished(engine, ignore, Coding.among(hooks))
        ids = [run.id for run in engine.runs()]
        return _without_ids(_Play(result, _shown(result), runs), ids)

    calm = await play(None)
    different: list[str] = []
    steps = dict.fromkeys(step for run in calm.runs for step in run.steps)
    for crash in (_Crash(step, when) for step in steps for when in WHENS if when in whens):
        try:
            differences = list(_differences(calm, await play(crash)))
        except Exception as error:
            differences = [f"the scenario raised {type(error).__name__}: {error}"]
        if differences:
            different.append("\n    ".join([f"{crash}:", *differences]))
    if different:
        raise AssertionError(_verdict(different))
    return calm.result  # type: ignore[no-any-return]


class _Crash(NamedTuple):
    step: str
    when: When

    def __str__(self) -> str:
        if self.when == "recorded":
            return f"a crash when {self.step!r} is recorded"
        return f"a crash {self.when} {self.step!r}"


class _Run(NamedTuple):
    """How a run ended."""

    function_id: str
    response: str
    values: dict[str, str]
    steps: tuple[str, ...]
    """All of them, in order of completion."""


class _Play(NamedTuple):
    """What came of a scenario."""

    result: Any
    shown: str
    runs: list[_Run]


async def _finished(engine: VirtualEngine, ignore: Collection[str], coding: Coding) -> list[_Run]:
    """All runs at their ends, of which they may begin more on the way."""
    finished: list[_Run] = []
    while len(finished) < len(engine.runs()):
        run = engine.runs()[len(finished)]
        response = await engine.finish(run.id)
        memo = await engine.memo(run.id)
        compared = [coding.decoded(run.id, memo[name]) for name in memo if name not in ignore]
        values = {
            name: orjson.dumps(_without_times(value, memo[name].kind)).decode()
            for name, value in values_of(compared).items()
        }
        finished.append(_Run(run.function_id, _shown(response), values, tuple(memo)))
    return finished


def _without_times(value: Any, kind: StepKind) -> Any:
    """The id of an event, and when it was sent, differ from play to play."""
    if kind is StepKind.WAIT_ANY and isinstance(value, dict):
        return {**value, "event": _without_times(value["event"], StepKind.WAIT)}
    if kind in FROM_OUTSIDE and isinstance(value, dict):
        return {name: part for name, part in value.items() if name not in ("id", "ts")}
    return value


def _shown(result: Any) -> str:
    """What has to be the same each time, as text."""
    if isinstance(result, httpx.Response):
        return f"{result.status_code} {result.text}"
    return repr(result)


def _without_ids(play: _Play, ids: Sequence[str]) -> _Play:
    """Ids of runs differ from play to play, and may stand in answers and values."""

    def named(text: str) -> str:
        for number, run_id in enumerate(ids, 1):
            text = text.replace(run_id, f"(the id of run {number})")
        return text

    runs = [
        run._replace(
            response=named(run.response),
            values={name: named(value) for name, value in run.values.items()},
        )
        for run in play.runs
    ]
    return play._replace(shown=named(play.shown), runs=runs)


def _differences(calm: _Play, play: _Play) -> Iterator[str]:
    if play.shown != calm.shown:
        yield f"the scenario gives {_short(play.shown)} instead of {_short(calm.shown)}"
    if len(play.runs) != len(calm.runs):
        yield f"there are {len(play.runs)} runs instead of {len(calm.runs)}"
    for number, (run, wanted) in enumerate(zip(play.runs, calm.runs, strict=False), 1):
        name = f"run {number} ({wanted.function_id})"
        if run.response != wanted.response:
            yield f"{name} answers {_short(run.response)} instead of {_short(wanted.response)}"
        for step in {**wanted.values, **run.values}:
            value, other = run.values.get(step), wanted.values.get(step)
            if value != other:
                yield f"{name} has {step!r}: {_short(value)} instead of {_short(other)}"


def _short(text: str | None) -> str:
    if text is None:
        return "no value"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _verdict(different: list[str]) -> str:
    return "\n  ".join(
        [
            "the scenario does not survive every crash:",
            *different[:_TOLD],
            *([f"… and {len(different) - _TOLD} more"] if len(different) > _TOLD else []),
            "A body that had run when the process was lost runs again: make it idempotent, with "
            "the run's id or an id made in an earlier step. What differs each time for a good "
            "reason (a random id, the time) belongs into a step of its own, named in `ignore`, or "
            "replaced in `prepare`. What hooks of the application encode or encrypt is compared "
            "decoded, if they are given as `hooks`.",
        ]
    )
