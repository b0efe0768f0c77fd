"""FastAPI with users, models and typed steps; a token that expires does not end what it began.

    uvicorn examples.fastapi_auth:app
    token=$(curl -s localhost:8000/token -d 'username=ada&password=engine' | cut -d'"' -f4)
    curl -L localhost:8000/orders --json '{"item": "brass gears", "quantity": 12}' \
      -H "Authorization: Bearer $token"

The order takes three seconds, and the token is good for two. `curl -L` gets its answer all the
same, because the run remembers who asked. Another order with the old token is a 401.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer, OAuth2PasswordRequestForm
from pydantic import BaseModel, PositiveInt

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, remember, step

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())

TOKEN_LIFETIME = 2
"""Seconds."""


class User(BaseModel):
    name: str
    address: str


# These two stand for your identity provider.
USERS = {
    ("ada", "engine"): User(name="ada", address="12 St James's Square"),
    ("charles", "difference"): User(name="charles", address="1 Dorset Street"),
}
tokens: dict[str, tuple[User, float]] = {}
"""Whose each token is, and until when (epoch seconds)."""


@app.post("/token")
async def log_in(form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> dict[str, str]:
    user = USERS.get((form.username, form.password))
    if user is None:
        raise HTTPException(401, "Wrong name or password.")
    token = secrets.token_urlsafe()
    tokens[token] = (user, time.time() + TOKEN_LIFETIME)
    return {"access_token": token, "token_type": "bearer"}


async def current_user(
    token: Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="token"))],
) -> User:
    user, expires = tokens.get(token, (None, 0))
    if user is None or time.time() > expires:
        raise HTTPException(401, "Log in again.", {"WWW-Authenticate": "Bearer"})
    return user


class Order(BaseModel):
    item: str
    quantity: PositiveInt


class Quote(BaseModel):
    seller: str
    price: Decimal


@dataclass
class Shipment:
    content: str
    arrives: datetime


class Confirmation(BaseModel):
    customer: str
    quote: Quote
    shipment: Shipment


@app.post("/orders")
@endpoint
async def place_order(
    order: Order, user: Annotated[User, Depends(remember(current_user))]
) -> Confirmation:
    # What the function is annotated to return is what the await gives: a Quote, from memory too.
    quote = await step.run("quote", ask_for_quote, order)
    await step.sleep("produce", "3s")
    shipment = await step.run("ship", ship, order, user)
    return Confirmation(customer=user.name, quote=quote, shipment=shipment)


async def ask_for_quote(order: Order) -> Quote:
    """Stands for a call of another service."""
    return Quote(seller="Babbage & Sons", price=order.quantity * Decimal("1.10"))


async def ship(order: Order, user: User) -> Shipment:
    """Stands for a call of another service."""
    arrives = datetime.now(UTC) + timedelta(days=3)
    return Shipment(f"{order.quantity} {order.item} to {user.address}", arrives)
