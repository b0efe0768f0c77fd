"""The forms of the client, and a client of the user's own for each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.durable_endpoints.client.forms import FORMS, Form, close


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    made: Form = request.param
    return made


@pytest.fixture
async def client(form: Form) -> AsyncIterator[Any]:
    made = form.make_client()
    yield made
    await close(made)
