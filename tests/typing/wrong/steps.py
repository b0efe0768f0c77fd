"""Each marked line is an error for both checkers."""

from __future__ import annotations

from datetime import datetime
from typing import assert_type

from durable_endpoints import Saga, endpoint, step, stream


async def load(order_id: int) -> str:
    return str(order_id)


def charge(order_id: int, *, amount: float) -> str:
    return str(order_id)


@endpoint
async def report(topic: str) -> int:
    return 1


async def calls() -> None:
    await step.run(load, 7)  # error
    await step.run("load")  # error
    await step.run("load", load(7))  # error
    await step.run("load", load, "seven")  # error
    await step.run("load", load, 7, 8)  # error
    await step.run("load", load, retries=3)  # error
    await step.run("charge", charge, 7)  # error
    await step.run("charge", charge, 7, amount="much")  # error
    await step.run(7, load, 7)  # error
    number: int = await step.run("load", load, 7)  # error
    assert_type(await step.run("load", load, 7), int)  # error
    step.run("load", load, 7) + "!"  # error
    await step.options(retry=3).run("load", load, 7)  # error
    await step.options(retries="3").run("load", load, 7)  # error
    print(number)


async def waits() -> None:
    await step.sleep("nap")  # error
    await step.sleep("nap", None)  # error
    await step.sleep_until("monday", 1_700_000_000)  # error
    await step.wait_for_event("paid", timeout="1h")  # error
    await step.wait_for_event("paid", event="paid")  # error
    await step.wait_for_event("paid", "paid", timeout="1h")  # error
    event = await step.wait_for_event("paid", event="paid", timeout="1h")
    print(event.data)  # error
    await step.wait_for_event("paid", event="paid", timeout=datetime.now())  # error
    await step.wait_for_any("first", {"a": {"evnt": "paid"}}, timeout="1h")  # error
    await step.send_event("tell", {"id": 7})  # error
    await step.wait_for_signal("ok", signal="ok")  # error
    await step.wait_for_signal("ok", signal="ok", timeout=1, on_conflict="wait")  # error
    await step.send_signal("tell", {"id": 7})  # error


async def composition() -> None:
    text: str = await step.invoke("report", report, params={"topic": "whales"})  # error
    await step.invoke("report", "POST /report")  # error
    await step.fetch("page", "https://example.org")  # error
    print(text)
    async with Saga() as saga:
        saga.add_compensation("undo", load)  # error
        saga.add_compensation("undo", load, "seven")  # error
    step.progress("half")  # error


async def streams() -> None:
    await stream.pipe(5)  # error
    text: int = await stream.pipe(["a"])  # error
    print(text)


def blocking() -> None:
    step.sync.run("charge", charge, 7)  # error
    name: int = step.sync.run("charge", charge, 7, amount=1)  # error
    print(name)
