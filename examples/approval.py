"""A request that waits for a person: an expense is paid when somebody approves it by link.

    uvicorn examples.approval:app
    curl -L localhost:8000/expenses --json '{"amount": 120, "for": "a whale book"}'

prints nothing yet. The server's output shows the link, which stands for a mail to whoever decides.
Open it and decide; then curl prints the handler's answer. The request waits for 24 hours if need
be, over any number of restarts; curl itself is told after seven minutes that the run still goes on
(202), and where to ask again.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from durable_endpoints import (
    DurableEndpointsMiddleware,
    endpoint,
    endpoint_proxy,
    send_signal,
    step,
)

# Links are not made from the request: who sends it chooses its Host, and would get the token.
PUBLIC_URL = os.environ.get("PUBLIC_URL", "http://localhost:8000")


@endpoint
async def submit(request: Request) -> Response:
    expense = await request.json()
    # Nobody can guess it. Made in a step: when this handler runs again, it is still the same.
    token = await step.run("make token", secrets.token_urlsafe)
    link = PUBLIC_URL + request.app.url_path_for("decision", token=token)
    await step.run("ask", ask, expense, link)
    decision = await step.wait_for_signal("decision", signal=f"expense {token}", timeout="24h")
    if decision is None:
        return JSONResponse({"paid": False, "because": "nobody decided within 24 hours"})
    if not decision.data["approved"]:
        return JSONResponse({"paid": False, "because": "it was refused"})
    return JSONResponse({"paid": True, "receipt": await step.run("pay", pay, expense)})


def ask(expense: dict[str, Any], link: str) -> None:
    """Stands for a mail."""
    print(f"May we pay {expense['amount']} for {expense['for']}? {link}", flush=True)


def pay(expense: dict[str, Any]) -> str:
    """Stands for a payment."""
    return f"{expense['amount']} paid for {expense['for']}"


async def show_decision(request: Request) -> Response:
    """The link's page. Opening it decides nothing: programs that look into mails open links too."""
    return HTMLResponse("""<!doctype html>
<form method="post">
  <button name="decision" value="approve">Approve</button>
  <button name="decision" value="refuse">Refuse</button>
</form>
""")


async def decide(request: Request) -> Response:
    async with request.form() as form:
        choice = form.get("decision")
    if choice not in ("approve", "refuse"):
        return PlainTextResponse("Approve or refuse?", 400)
    decision = {"approved": choice == "approve"}
    if not await send_signal(f"expense {request.path_params['token']}", decision):
        return PlainTextResponse("This link is not good, or was used, or is too old.", 410)
    return PlainTextResponse("Thank you.")


app = Starlette(
    routes=[
        Route("/expenses", submit, methods=["POST"]),
        Route("/decisions/{token}", show_decision, methods=["GET"], name="decision"),
        Route("/decisions/{token}", decide, methods=["POST"]),
        Mount("/wait", endpoint_proxy()),
    ],
    middleware=[Middleware(DurableEndpointsMiddleware)],
)
