"""A request that waits for a person: an expense is paid when somebody opens the link.

    uvicorn examples.approval:app
    curl -L localhost:8000/expenses --json '{"id": "e1", "amount": 120}'

prints nothing yet. The server's output shows the link to open; then curl prints the handler's
answer. The request waits for three days if need be; curl itself is told after seven minutes that
the run still goes on (202), and where to ask again.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from durable_endpoints import (
    DurableEndpointsMiddleware,
    NonRetriableError,
    endpoint,
    endpoint_proxy,
    send_event,
    step,
)


@endpoint
async def submit(request: Request) -> Response:
    expense = await request.json()
    link = str(request.url_for("approve", expense=expense["id"]))
    await step.run("ask", ask, link)
    approval = await step.wait_for_event(
        "approval", event="expense/approved", match="data.id", timeout="3d"
    )
    if approval is None:
        return JSONResponse({"paid": False, "reason": "nobody approved in three days"}, 409)
    receipt = await step.run("pay", pay, expense)
    return JSONResponse({"paid": True, "receipt": receipt})


def ask(link: str) -> None:
    print(f"Approve: {link}", flush=True)  # a mail, in real life


def pay(expense: dict[str, object]) -> str:
    if not isinstance(expense.get("amount"), int | float):
        raise NonRetriableError("the expense has no amount")
    return f"receipt-{expense['id']}"


async def approve(request: Request) -> Response:
    expense = request.path_params["expense"]
    # The id makes a second click on the link the same event.
    await send_event("expense/approved", {"id": expense}, id=f"approved-{expense}")
    return PlainTextResponse("Thank you.")


app = Starlette(
    routes=[
        Route("/expenses", submit, methods=["POST"]),
        Route("/approve/{expense}", approve, name="approve"),
        Mount("/wait", endpoint_proxy()),
    ],
    middleware=[Middleware(DurableEndpointsMiddleware)],
)
