"""An application that plays programs with the SDK: one endpoint for each label of a scenario."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from durable_endpoints import (
    DurableEndpointsMiddleware,
    NonRetriableError,
    StepError,
    endpoint,
    endpoint_proxy,
    step,
    stream,
)
from durable_endpoints._context import current
from durable_endpoints.engines.base import Engine
from durable_endpoints.protocol.step_ids import HANDLER_STEP
from tests.simulation.programs import (
    Invoke,
    Node,
    Parallel,
    Program,
    Push,
    Scenario,
    Send,
    Signal,
    Sleep,
    Step,
    Stumble,
    Wait,
    WaitAny,
    programs,
)

_PATIENT = 12 * 3_600_000
"""Milliseconds: longer than anything here takes, and much shorter than what programs call patient,
in which a server and its applications tell each other often that they live."""


class Witness(Protocol):
    """Sees the effects of bodies, from outside."""

    def body_starts(self, run_id: str, generation: int, name: str) -> None: ...

    def body_ends(self, run_id: str, generation: int, name: str, attempt: int) -> None:
        """A try of a step ends whose outcome is on disk before another body begins."""
        ...


def application(scenario: Scenario, engine: Engine, witness: Witness) -> Starlette:
    """The application of one process."""
    endpoints: dict[str, Any] = {}
    cancellable = {cancel.label for cancel in scenario.cancels}
    for label, program in programs(scenario).items():
        player = _Player(label, program, endpoints, witness)
        options: dict[str, Any] = {"retries": program.retries, "cancellable": label in cancellable}
        if program.max_runtime is not None:
            options["max_runtime"] = program.max_runtime / 1_000
        if program.is_background:
            options["checkpoint"] = "background"
        endpoints[label] = endpoint(**options)(player.handler())
    routes = [
        Route(path_of(label), decorated, methods=["POST"]) for label, decorated in endpoints.items()
    ]
    return Starlette(
        routes=[*routes, Mount("/wait", endpoint_proxy())],
        middleware=[Middleware(DurableEndpointsMiddleware, engine=engine)],
    )


def path_of(label: str) -> str:
    """Where the endpoint of a label is."""
    return f"/run/{label}"


class PlannedError(Exception):
    """A failure that the program wants."""


PLANNED = (PlannedError, NonRetriableError, StepError)
"""What handlers raise as the program wants."""


class _Player:
    """Plays one program."""

    def __init__(
        self, label: str, program: Program, endpoints: dict[str, Any], witness: Witness
    ) -> None:
        self._label = label
        self._program = program
        self._endpoints = endpoints
        self._witness = witness

    def handler(self) -> Callable[[Request], Any]:
        async def handler(request: Request) -> JSONResponse:
            return JSONResponse(await self._play(self._program.nodes))

        return handler

    async def _play(self, nodes: Sequence[Node]) -> list[Any]:
        return [await self._node(node) for node in nodes]

    async def _node(self, node: Node) -> Any:
        match node:
            case Step():
                call = step.run(node.name, self._body, node)
                return await (_caught(call) if node.is_caught else call)
            case Sleep():
                await step.sleep(node.name, node.duration / 1_000)
            case Wait() | WaitAny() | Signal():
                return await _wait(node)
            case Send():
                data = {"key": node.key, "number": node.number}
                await step.send_event(node.name, node.event, data)
            case Invoke():
                timeout = None if node.timeout is None else node.timeout / 1_000
                child = self._endpoints[f"{self._label}/{node.name}"]
                invoked = step.invoke(node.name, child, timeout=timeout)
                answer = await (_caught(invoked) if node.is_caught else invoked)
                return answer if isinstance(answer, dict) else answer.json()
            case Parallel():
                return await asyncio.gather(*(self._play(branch) for branch in node.branches))
            case Push():
                for chunk in node.chunks:
                    stream.push(chunk)
            case Stumble():
                known = current.place.execution.memo.get(HANDLER_STEP.hash)
                if (0 if known is None else known.attempt) < node.times:
                    raise PlannedError("the handler stumbles")
        return None

    async def _body(self, node: Step) -> int:
        scope = current.place
        execution = scope.execution
        which = execution.info.run_id, execution.info.generation, node.name
        self._witness.body_starts(*which)
        for chunk in node.chunks:
            stream.push(chunk)
        if node.takes:
            await asyncio.sleep(node.takes / 1_000)
        if not self._program.is_background:
            self._witness.body_ends(*which, scope.attempt)
        if node.is_fatal:
            raise NonRetriableError("not to be tried again")
        if scope.attempt <= node.failures:
            raise PlannedError("not yet")
        return node.value


async def _caught(call: Any) -> Any:
    try:
        return await call
    except StepError as error:
        return {"error": error.step}


async def _wait(node: Wait | WaitAny | Signal) -> Any:
    timeout = min(node.timeout, _PATIENT) / 1_000
    if isinstance(node, Signal):
        signal = await step.wait_for_signal(node.name, signal=node.signal, timeout=timeout)
        return None if signal is None else signal.data
    match = None if node.key is None else {"data.key": node.key}
    if isinstance(node, Wait):
        event = await step.wait_for_event(node.name, event=node.event, match=match, timeout=timeout)
        return None if event is None else event.data["number"]
    found = await step.wait_for_any(node.name, list(node.events), match=match, timeout=timeout)
    return None if found is None else [found[0], found[1].data["number"]]
