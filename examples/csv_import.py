"""A long import that shows how far it is, goes on where it was, and forgives bad rows.

    uvicorn examples.csv_import:app
    (echo email,name; seq 2000 | sed 's/.*/user&@example.com,User &/; 7s/@/ /') > customers.csv
    python examples/watch.py http://localhost:8000/customers customers.csv

Kill the server in the middle and start it again: the import goes on with the batch in which it was.
"""

from __future__ import annotations

import csv
import io
import sqlite3
import time
from contextlib import closing
from typing import Annotated

from fastapi import Body, FastAPI
from pydantic import BaseModel, StringConstraints, ValidationError

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, step

BATCH = 100
"""Rows in a step: what may have to be done again, and how often progress is told."""

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware, max_request_body=64 * 1024 * 1024)
app.mount("/wait", endpoint_proxy())


class Customer(BaseModel):
    email: Annotated[str, StringConstraints(pattern=r"^\S+@\S+$")]
    name: str


class BadRow(BaseModel):
    row: int
    because: str


class Report(BaseModel):
    imported: int
    rejected: list[BadRow]


@app.post("/customers")
@endpoint
async def import_customers(file: Annotated[str, Body(media_type="text/csv")]) -> Report:
    rows = list(csv.DictReader(io.StringIO(file)))
    rejected: list[BadRow] = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        rejected += await step.run(f"rows from {start + 1}", import_rows, start + 1, batch)
        step.progress(start + len(batch), len(rows))
    return Report(imported=len(rows) - len(rejected), rejected=rejected)


def import_rows(first: int, rows: list[dict[str, str]]) -> list[BadRow]:
    """Put rows into the database, and tell which are bad."""
    customers: list[Customer] = []
    rejected: list[BadRow] = []
    for number, row in enumerate(rows, first):
        try:
            customers.append(Customer.model_validate(row))
        except ValidationError as error:
            rejected.append(BadRow(row=number, because=error.errors()[0]["msg"]))
            step.log.warning(f"row {number} is bad: {rejected[-1].because}")
    save(customers)
    return rejected


def save(customers: list[Customer]) -> None:
    """Stands for your database. A row that is there is replaced: a batch may be saved again."""
    time.sleep(0.1)
    with closing(sqlite3.connect("customers.db")) as database, database:
        database.execute("create table if not exists customer (email primary key, name)")
        rows = [(customer.email, customer.name) for customer in customers]
        database.executemany("insert or replace into customer values (?, ?)", rows)
