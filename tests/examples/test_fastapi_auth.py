"""An order at `examples/fastapi_auth.py` outlives the token it was placed with."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from tests.chaos.process import Server
from tests.examples.first_lines import commands, type_into_shell


def test_an_order_outlives_its_token(tmp_path: Path) -> None:
    with Server(tmp_path, app="examples.fastapi_auth:app", alive="/docs") as server:
        typed = type_into_shell(server, commands("fastapi_auth") + "\necho\necho $token")
        answer, token = typed.split("\n")[:2]
        confirmation = json.loads(answer)
        assert confirmation["customer"] == "ada"
        assert confirmation["quote"] == {"seller": "Babbage & Sons", "price": "13.20"}
        assert confirmation["shipment"]["content"] == "12 brass gears to 12 St James's Square"

        def order(token: str, quantity: int = 1) -> int:
            return httpx.post(
                f"{server.url}/orders",
                json={"item": "gear", "quantity": quantity},
                headers={"authorization": f"Bearer {token}"},
            ).status_code

        assert order(token) == 401, "it has expired"
        assert order("guessed") == 401
        wrong = {"username": "ada", "password": "guessed"}
        assert httpx.post(f"{server.url}/token", data=wrong).status_code == 401
        right = {"username": "ada", "password": "engine"}
        token = httpx.post(f"{server.url}/token", data=right).json()["access_token"]
        assert order(token, quantity=0) == 422
