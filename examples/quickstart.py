"""The smallest durable endpoint.

    uvicorn examples.quickstart:app
    curl -L -d '' localhost:8000/report/whales

Stop the server, or kill it, while the request is under way, and start it again: the run goes on
where it was. (curl gives up when its server dies. A client that repeats the request with the same
`Idempotency-Key` header gets the answer of the first one.)
"""

from __future__ import annotations

import asyncio

from fastapi import FastAPI

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, step

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())


async def gather(topic: str) -> list[str]:
    await asyncio.sleep(1)  # a slow API
    return [f"{topic} are large", f"{topic} are old"]


@app.post("/report/{topic}")
@endpoint(retries=5)
async def report(topic: str) -> dict[str, str]:
    facts = await step.run("gather", gather, topic)
    await step.sleep("let it settle", "3s")
    return {"report": ". ".join(facts)}
