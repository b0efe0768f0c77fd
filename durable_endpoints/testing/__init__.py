"""Testing durable endpoints: the real engine in memory, and a clock that you move.

The application is tested as it is, with `add_middleware(DurableEndpointsMiddleware)` and nothing
else: an engine that is *in use* is that of every application whose middleware was given none.
Nothing is written to disk. In a test with an event loop:

    from durable_endpoints.testing import VirtualEngine

    async def test_nobody_approves() -> None:
        engine = VirtualEngine()
        async with engine.client(app) as client:  # lifespan=True starts the application, too
            response = await client.post("/report/whales")
            assert response.status_code == 303
            await engine.advance("24h")  # in no time
            answer = await client.get(response.headers["location"])
            assert answer.json()["approved"] is False

With the `TestClient` of Starlette or FastAPI, with its lifespan or without; `engine.sync` blocks:

    def test_the_card_reader_is_offline_twice() -> None:
        with VirtualEngine() as engine, TestClient(app) as client:
            engine.fail("charge", times=2, error=ConnectionError("card reader offline"))
            client.post("/orders", follow_redirects=False)
            assert engine.sync.finish().json() == {"paid": True}
            assert len(engine.sync.attempts("charge")) == 3

With the fixture of the pytest plugin, an engine that is in use during the test:

    def test_a_crash_after_the_charge(durable_engine: VirtualEngine) -> None:
        durable_engine.crash_at("charge", "recorded")
        TestClient(app).post("/orders", follow_redirects=False)
        durable_engine.sync.restart()
        assert durable_engine.sync.finish().json() == {"paid": True}

`survives_crashes` tries a crash before, in and after each step of a scenario.
"""

from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.testing.blocking import BlockingEngine
from durable_endpoints.testing.clock import VirtualClock
from durable_endpoints.testing.engine import VirtualEngine
from durable_endpoints.testing.looking import Attempt, UnknownRunError
from durable_endpoints.testing.surviving import survives_crashes

__all__ = [
    "AppTransport",
    "Attempt",
    "BlockingEngine",
    "UnknownRunError",
    "VirtualClock",
    "VirtualEngine",
    "survives_crashes",
]
