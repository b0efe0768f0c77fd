"""A trip is booked whole or not at all: what was booked is cancelled when the payment fails.

    uvicorn examples.trip_booking:app
    curl -L localhost:8000/trips --json '{"to": "Reykjavik", "card": "4242"}'
    curl -L localhost:8000/trips --json '{"to": "Reykjavik", "card": "declined"}'
    ls .durable/bookings

The server's output tells what is booked and cancelled. Kill it in the middle and start it again: it
goes on, and books nothing twice.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from durable_endpoints import (
    DurableEndpointsMiddleware,
    NonRetriableError,
    Saga,
    StepError,
    endpoint,
    endpoint_proxy,
    step,
)

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())


class Trip(BaseModel):
    to: str
    card: str


class Booked(BaseModel):
    flight: str
    hotel: str
    payment: str


@app.post("/trips")
@endpoint(retries=5)
async def book_trip(trip: Trip) -> Booked:
    # Made in a step, so it stays the same. A step whose process died in the middle runs again; who
    # is asked for the same booking again knows it by its reference, and makes no second.
    reference = await step.run("reference", new_reference)
    try:
        async with Saga(retries=20) as saga:  # undoing should not fail
            # Registered first: a booking whose answer was lost is to be cancelled as well.
            saga.add_compensation("cancel flight", cancel, f"{reference}-flight")
            flight = await step.run("book flight", book, f"{reference}-flight", trip.to)
            saga.add_compensation("cancel hotel", cancel, f"{reference}-hotel")
            hotel = await step.run("book hotel", book, f"{reference}-hotel", trip.to)
            saga.add_compensation("refund", cancel, f"{reference}-payment")
            payment = await step.run("pay", pay, f"{reference}-payment", trip.card)
    except StepError as error:
        raise HTTPException(409, f"Nothing was booked: {error.message}") from error
    return Booked(flight=flight, hotel=hotel, payment=payment)


def new_reference() -> str:
    return uuid.uuid4().hex[:8]


# From here on: stands for an airline, a hotel and a bank. A booking or payment is a file.

BOOKINGS = Path(".durable/bookings")


def book(reference: str, to: str) -> str:
    """Book, unless there is a booking of this reference."""
    BOOKINGS.mkdir(parents=True, exist_ok=True)
    if not (BOOKINGS / reference).exists():
        (BOOKINGS / reference).write_text(to)
        print(f"Booked {reference}", flush=True)
    time.sleep(0.3)  # until the answer is here
    return reference


def cancel(reference: str) -> None:
    """Cancel the booking of this reference, if there is one."""
    if (BOOKINGS / reference).exists():
        (BOOKINGS / reference).unlink()
        print(f"Cancelled {reference}", flush=True)
    time.sleep(0.3)


def pay(reference: str, card: str) -> str:
    if card == "declined":
        raise NonRetriableError("the card was declined")  # another try would not help
    return book(reference, card)
