"""A webhook that is handled once, however often it is delivered.

    uvicorn examples.webhook:app

    deliver() { # the id of an event: signed as https://www.standardwebhooks.com says
      body='{"type": "invoice.paid", "customer": "ada"}' now=$(date +%s)
      signature=$(printf '%s.%s.%s' "$1" "$now" "$body" |
        openssl dgst -sha256 -hmac "a secret" -binary | base64)
      curl localhost:8000/webhooks --json "$body" -H "webhook-id: $1" \
        -H "webhook-timestamp: $now" -H "webhook-signature: v1,$signature"
    }
    deliver evt_1
    deliver evt_1

Providers repeat a delivery until they get a 2xx, and want that within seconds. Both deliveries get
a 202 after a second, for one and the same run; the work goes on, and a third one would get its
result. Kill the server meanwhile: what was accepted is done after the next start.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import os
import time
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, remember, step

SECRET = os.environ.get("WEBHOOK_SECRET", "a secret")

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())


class Notice(BaseModel):
    type: str
    customer: str


async def signed(request: Request) -> str:
    """The id of a delivery that has been signed with our secret, in the last five minutes."""
    id, sent = request.headers.get("webhook-id", ""), request.headers.get("webhook-timestamp", "")
    signed_content = f"{id}.{sent}.".encode() + await request.body()
    digest = hmac.digest(SECRET.encode(), signed_content, "sha256")
    expected = b"v1," + base64.b64encode(digest)
    given = request.headers.get("webhook-signature", "").encode().split()
    if not id or not any(hmac.compare_digest(one, expected) for one in given):
        raise HTTPException(401, "The signature is wrong.")
    if abs(time.time() - float(sent)) > 300:
        raise HTTPException(401, "The delivery is too old.")
    return id


def event_id(request: Request) -> str:
    """What names a delivery: the same text means that it was delivered before."""
    return request.headers["webhook-id"]


def accepted(request: Request, run_id: str, token: str) -> Response:
    """What the provider gets while the work goes on: it would follow no redirect."""
    return JSONResponse({"accepted": run_id}, 202)


@app.post("/webhooks")
# What has been accepted is not delivered again, so the steps are tried for hours if need be.
@endpoint(idempotency_key=event_id, async_response=accepted, respond_within="1s", retries=20)
async def receive(
    notice: Notice,
    # Remembered, because in a later execution of the handler the delivery would be too old.
    delivery: Annotated[str, Depends(remember(signed))],
) -> dict[str, str]:
    if notice.type != "invoice.paid":
        return {"ignored": notice.type}
    await step.run("unlock", unlock, notice.customer)
    await step.run("send receipt", send_receipt, notice.customer, delivery)
    return {"handled": delivery}


async def unlock(customer: str) -> None:
    await asyncio.sleep(3)  # a slow system
    print(f"Unlocked the account of {customer}", flush=True)


async def send_receipt(customer: str, delivery: str) -> None:
    # Should the process die right here, the step runs again: tell the mailer what names the mail.
    print(f"Sending a receipt to {customer} (Idempotency-Key: receipt-{delivery})", flush=True)
