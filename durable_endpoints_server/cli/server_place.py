"""A server as the place of a command: asked over HTTP, with the signing key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import orjson

from durable_endpoints.protocol.errors import ConfigurationError, EngineError
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints.protocol.signing import hashed
from durable_endpoints.protocol.urls import without_credentials
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.settings import is_loopback

_TIMEOUT = 30.0
_EVENT_KEYS = ("DURABLE_ENDPOINTS_EVENT_KEY", "INNGEST_EVENT_KEY")
_KEYS = ("DURABLE_ENDPOINTS_SIGNING_KEY", "INNGEST_SIGNING_KEY")


class ServerPlace:
    """A `Place` that is a server.

    Its methods raise `ConfigurationError` for a wrong URL or key, and `EngineError` for a server
    that cannot be reached or refuses.
    """

    def __init__(self, url: str, environ: Mapping[str, str]) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"--server={without_credentials(url)}: give a URL that begins with http:// or "
                "https://"
            )
        self._url = url.rstrip("/")
        self.name = without_credentials(self._url)
        names = [name + suffix for suffix in ("", "_FALLBACK") for name in _KEYS]
        self._event_key = next((environ[name] for name in _EVENT_KEYS if environ.get(name)), "-")
        self._keys = [environ[name].strip() for name in names if environ.get(name, "").strip()]

    def list_runs(
        self, statuses: Sequence[str], function_id: str | None, limit: int, before: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        query: dict[str, Any] = {"status": list(statuses), "limit": limit}
        if function_id is not None:
            query["function"] = function_id
        if before is not None:
            query["before"] = before
        answer = self._ask("GET", "/v1/durable/runs", query)
        return answer["data"], answer["metadata"]["next"]

    def run(self, run_id: str) -> dict[str, Any] | None:
        full: dict[str, Any] | None = self._ask_of_run("GET", run_id)
        return full

    def status(self, run_id: str) -> Status | None:
        full = self.run(run_id)
        return None if full is None else Status[full["status"].upper()]

    def stream(self, run_id: str) -> list[dict[str, Any]] | None:
        lines: list[dict[str, Any]] | None = self._ask_of_run("GET", run_id, "/stream")
        return lines

    def requests(self, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("GET", "/v1/durable/requests", {"limit": limit})[
            "data"
        ]
        return found

    def retry(self, run_id: str) -> str:
        return self._change(run_id, "/retry")

    def cancel(self, run_id: str) -> str:
        return self._change(run_id, "/cancel")

    def send_event(self, event: NewEvent) -> str:
        data = orjson.Fragment(event.data)
        body = {"id": event.id, "name": event.name, "data": data}
        self._ask("POST", f"/e/{quote(self._event_key, safe='')}", body=body)
        return event.id

    def send_signal(self, name: str, data: bytes) -> str:
        body = {"signal": name, "data": orjson.Fragment(data)}
        try:
            taken = self._ask("POST", "/v1/signals", body=body)["data"]
        except _UnknownError:
            return "No run waits for it: it is gone."
        return f"Run {taken['run_id']} has taken it."

    def _change(self, run_id: str, what: str) -> str:
        done = self._ask_of_run("POST", run_id, what)
        return f"{run_id} is {'gone' if done is None else done['status']} now."

    def _ask_of_run(self, method: str, run_id: str, rest: str = "") -> Any:
        """What the server answers about a run. None if it has none with this id."""
        if "/" in run_id:  # no run's id, and another path for the server
            return None
        try:
            path = f"/v1/durable/runs/{quote(run_id, safe='')}{rest}"
            return self._ask(method, path)["data"]
        except _UnknownError:
            return None

    def _ask(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> Any:
        """The answer's JSON."""
        for key in self._keys or [""]:
            response = self._send(method, path, query, body, key)
            if response.status_code not in (401, 403):
                break
        else:
            raise ConfigurationError(
                f"the server at {self.name} does not accept the signing key: set {_KEYS[0]} to "
                "one of its keys"
                if self._keys
                else f"the server at {self.name} wants a signing key: set {_KEYS[0]} to one of "
                "its keys"
            )
        answer = self._read(response)
        if response.is_success:
            return answer
        if answer.get("code") == "unknown_run":
            raise _UnknownError(answer["error"])
        raise EngineError(str(answer["error"]))

    def _send(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, key: str
    ) -> httpx.Response:
        headers = {"content-type": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {hashed(key)}"
        content = None if body is None else orjson.dumps(body)
        try:
            return httpx.request(
                *(method, self._url + path),
                params=query,
                content=content,
                headers=headers,
                timeout=_TIMEOUT,
                # A proxy for the world outside cannot reach this machine.
                trust_env=not is_loopback(urlsplit(self._url).hostname or ""),
            )
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise EngineError(
                f"the server at {self.name} cannot be reached ({error}): is it running, and is "
                "this its URL?"
            ) from error

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = orjson.loads(response.content)
        except ValueError:
            answer = None
        expected = {"data", "ids"} if response.is_success else {"error"}
        # An address that a server does not know is told without a code.
        is_unknown = response.status_code in (404, 405) and "code" not in (answer or ())
        if not isinstance(answer, dict) or not expected & answer.keys() or is_unknown:
            raise EngineError(
                f"what answers at {self.name} is no server of durable-endpoints of this version "
                f"(it said {response.status_code} in another form): name the one that your "
                "applications use with --server, by scheme, host and port"
            )
        return answer


class _UnknownError(EngineError):
    """The server has no such run."""
