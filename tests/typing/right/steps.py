"""What the await of each step gives."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar, assert_type, overload

import httpx
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from durable_endpoints import Event, Saga, Signal, endpoint, send_signal, step

T = TypeVar("T")


class Order(BaseModel):
    id: int


@dataclass
class Receipt:
    total: float


class Box(BaseModel, Generic[T]):
    inside: T


async def load(order_id: int, *, fresh: bool = False) -> Order:
    return Order(id=order_id)


def charge(order: Order, amount: float = 1.0) -> Receipt:
    return Receipt(total=amount)


def first(items: Sequence[T]) -> T:
    return items[0]


def boxed(inside: T) -> Box[T]:
    return Box(inside=inside)


@overload
def parse(text: str) -> int: ...
@overload
def parse(text: bytes) -> str: ...
def parse(text: str | bytes) -> int | str:
    return int(text) if isinstance(text, str) else text.decode()


def maybe(order: Order) -> Order | None:
    return order


def nothing() -> None: ...


class Shop:
    async def price(self, order: Order) -> float:
        return 1.0

    @staticmethod
    def tax(price: float) -> float:
        return price

    def __call__(self, order: Order) -> Receipt:
        return Receipt(total=order.id)


async def bodies() -> None:
    order = await step.run("load", load, 7, fresh=True)
    assert_type(order, Order)
    assert_type(await step.run("charge", charge, order, amount=2), Receipt)
    assert_type(await step.run("again", charge, order), Receipt)
    assert_type(await step.run("maybe", maybe, order), Order | None)
    assert_type(await step.run("nothing", nothing), None)
    assert_type(await step.run("first", first, [order]), Order)
    assert_type(await step.run("boxed", boxed, order), Box[Order])
    assert_type(await step.run("lambda", lambda: 5), int)
    assert_type(await step.run("awaitable lambda", lambda: load(7)), Order)
    assert_type(await step.run("partial", functools.partial(load, 7)), Order)
    assert_type(await step.run("plain partial", functools.partial(charge, order)), Receipt)
    assert_type(await step.run("method", Shop().price, order), float)
    assert_type(await step.run("static", Shop.tax, 1.0), float)
    assert_type(await step.run("callable", Shop(), order), Receipt)
    assert_type(await step.options(retries=0, timeout="10s").run("other", load, 7), Order)

    async def closure() -> list[Order]:
        return [order]

    assert_type(await step.run("closure", closure), list[Order])


async def parallel() -> None:
    both = await asyncio.gather(step.run("a", load, 1), step.run("b", charge, Order(id=1)))
    assert_type(both, tuple[Order, Receipt])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(step.run("c", load, 1))
    assert_type(task.result(), Order)
    mixed = await asyncio.gather(step.run("d", load, 1), step.sleep("e", 1))
    assert_type(mixed, tuple[Order, None])
    many = await asyncio.gather(*(step.run(f"item-{n}", load, n) for n in range(3)))
    assert_type(many, list[Order])


async def waits() -> None:
    assert_type(await step.sleep("a", "1h"), None)
    await step.sleep("b", timedelta(hours=1))
    await step.sleep("c", 0.5)
    assert_type(await step.sleep_until("d", datetime.now(UTC)), None)
    await step.sleep_until("e", "2027-01-04T09:00:00+01:00")
    event = await step.wait_for_event("f", event="paid", timeout="3d")
    assert_type(event, Event | None)
    await step.wait_for_event("g", event="paid", timeout=60, match="data.id")
    await step.wait_for_event("h", event="paid", timeout=60, match={"data.id": 7})
    await step.wait_for_event("i", event="paid", timeout=60, if_exp="async.data.total > 100")
    which = await step.wait_for_any("j", ["paid", "cancelled"], timeout="3d")
    assert_type(which, tuple[str, Event] | None)
    await step.wait_for_any(
        "k", {"yes": "approved", "no": {"event": "rejected", "match": "data.id"}}, timeout="3d"
    )
    assert_type(await step.send_event("l", "shipped", {"id": 7}), str)
    signal = await step.wait_for_signal("m", signal="approve/7", timeout="3d")
    assert_type(signal, Signal | None)
    await step.wait_for_signal("n", signal="a", timeout=60, on_conflict="replace")
    assert_type(await step.send_signal("o", "approve/7", {"by": "Ada"}), bool)
    assert_type(await send_signal("approve/7"), bool)
    if signal is not None:
        assert_type(signal.name, str)
        assert_type(signal.data, Any)
        assert_type(signal.ts, int)
    if event is not None:
        assert_type(event.name, str)
        assert_type(event.data, Any)
        assert_type(event.id, str)
        assert_type(event.ts, int)


@endpoint
async def price(order_id: int) -> Receipt:
    return Receipt(total=order_id)


@endpoint
def plain_price(order_id: int) -> Order:
    return Order(id=order_id)


@endpoint
async def anything(body: dict[str, Any]) -> dict[str, Any]:
    return body


@endpoint
async def page(request: Request) -> Response:
    return Response()


async def composition() -> None:
    assert_type(await step.invoke("a", price, params={"order_id": 7}), Receipt)
    assert_type(await step.invoke("b", plain_price, json={"a": 1}, timeout="1h"), Order)
    assert_type(await step.invoke("c", page, method="POST"), httpx.Response)
    assert_type(await step.invoke("f", anything, json={"a": 1}), dict[str, Any])
    assert_type(await step.fetch("d", "GET", "https://example.org"), httpx.Response)
    answer = step.options(retries=5).fetch("e", "POST", "https://example.org", json={"a": 1})
    assert_type(await answer, httpx.Response)


def reports() -> None:
    assert_type(step.run_id, str)
    assert_type(step.progress(1, 3, "one third"), None)
    assert_type(step.log.info("sent", id=7), None)


def blocking() -> None:
    assert_type(step.sync.run("a", charge, Order(id=1), amount=2), Receipt)
    assert_type(step.sync.run("b", first, [1]), int)
    assert_type(step.sync.options(retries=1, timeout=5).run("c", maybe, Order(id=1)), Order | None)
    assert_type(step.sync.sleep("d", "1h"), None)
    assert_type(step.sync.wait_for_event("e", event="paid", timeout="1h"), Event | None)
    assert_type(step.sync.wait_for_any("f", ["paid"], timeout="1h"), tuple[str, Event] | None)
    assert_type(step.sync.send_event("g", "shipped"), str)
    assert_type(step.sync.wait_for_signal("j", signal="a", timeout=1), Signal | None)
    assert_type(step.sync.send_signal("k", "a", [1]), bool)
    assert_type(step.sync.invoke("h", price, params={"order_id": 7}), Receipt)
    assert_type(step.sync.invoke("l", anything), dict[str, Any])
    assert_type(step.sync.fetch("i", "GET", "https://example.org"), httpx.Response)


async def saga() -> None:
    async with Saga(retries=10) as trip:
        assert_type(trip, Saga)
        order = await step.run("book", load, 7)
        assert_type(trip.add_compensation("cancel", charge, order, amount=-1), None)
    with Saga() as blocking_trip:
        assert_type(blocking_trip, Saga)


async def generic(function: Callable[[int], T]) -> T:
    """Generic code of one's own keeps the type."""
    called: Coroutine[Any, Any, T] = step.run("generic", function, 7)
    also: Coroutine[None, None, T] = step.run("generic", function, 7)
    await also
    return await called


async def ask(messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return messages[0]


async def functions_with_any_in_their_signature() -> None:
    assert_type(await step.run("ask", ask, [{"role": "user"}], top_p=1), dict[str, Any])
    assert_type(await step.options(retries=1).run("ask", ask, []), dict[str, Any])
    assert_type(await step.run("ask", lambda: ask([])), dict[str, Any])
