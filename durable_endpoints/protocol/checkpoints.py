"""Inngest's checkpoint API as values: what is asked, what is answered, and how a result is spelled.

An application reports its run by checkpoints: the first one makes the run known, each later one
has steps, and the last one has the response. Steps are opcodes (`{"op": "StepRun", "id": …}`), and
whoever uses this makes and reads them as plain JSON values.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from durable_endpoints.protocol.errors import DurableEndpointsError
from durable_endpoints.protocol.step_ids import HANDLER_STEP

RUNS: Final = "/v1/checkpoint"
"""Where runs are reported. Inngest knows them under `/v1/http/runs` as well."""

Op = Mapping[str, Any]
"""One opcode."""


class CheckpointError(DurableEndpointsError):
    """A checkpoint was not taken. `status` is the server's answer, or 0 if there was none, and
    `body` what it said. Its subclasses say what to do about it."""

    def __init__(self, message: str, status: int = 0, body: bytes = b"") -> None:
        super().__init__(message, where="")
        self.status = status
        self.body = body


class CheckpointRefusedError(CheckpointError):
    """The server takes neither the signing key nor the fallback key, or does not trust the event's
    domain (401, 403)."""


class UnknownRunError(CheckpointError):
    """The server does not know the run, or has forgotten its steps, because it has ended (404,
    410)."""


class BadCheckpointError(CheckpointError):
    """The server does not understand the checkpoint, or it is too large (other 4xx). To repeat it
    will not help."""


class ServerUnavailableError(CheckpointError):
    """No answer, or one that says to ask again (408, 429, 5xx), each time it was tried."""


class RunEvent(NamedTuple):
    """The request that a run began with, as the server shows it, and as it calls the application
    back: at `domain` + `path`, with `query_params`, `method` and `body`."""

    domain: str
    """Scheme, host and port: `https://app.example.com`."""
    path: str
    method: str = "GET"
    fn: str = ""
    """The endpoint's name; the server makes one of method and path where there is none."""
    query_params: str = ""
    """Without the question mark."""
    content_type: str = ""
    ip: str = ""
    body: bytes = b""

    def as_json(self) -> dict[str, Any]:
        """The trigger event. Its body is base64, as Inngest's server wants it."""
        data = self._asdict()
        data["body"] = b64encode(self.body).decode()
        return {"name": "inngest/http.request", "data": data}


class CheckpointRun(NamedTuple):
    """A run that the server knows."""

    run_id: str
    fn_id: str = ""
    app_id: str = ""
    token: str = ""
    """Opens the run's output."""
    realtime_token: str = ""
    """Opens the run's stream."""


class ApiResult(NamedTuple):
    """The response that a run ended with."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    error: str = ""
    """Why there is no better one."""

    def as_json(self) -> dict[str, Any]:
        """As an opcode carries it: a body that is text as text, any other in the form of Inngest's
        Go SDK, as base64."""
        more = {"error": self.error} if self.error else {}
        head = {"headers": dict(self.headers), **more}
        try:
            return {"status": self.status, **head, "body": self.body.decode(), "version": 2}
        except UnicodeDecodeError:
            body = b64encode(self.body).decode()
            return {"status_code": self.status, **head, "body": body}

    @classmethod
    def from_json(cls, data: Any) -> ApiResult:
        """Read either form. Raises `ValueError` for what is neither."""
        if not isinstance(data, Mapping) or not {"status", "status_code"} & data.keys():
            raise ValueError("this is no result of an endpoint: it has no status")
        is_base64 = "status_code" in data
        status, body = data["status_code" if is_base64 else "status"], data.get("body") or ""
        headers = data.get("headers") or {}
        if not isinstance(status, int) or not isinstance(body, str):
            raise ValueError("this is no result of an endpoint: status and body are of other types")
        try:
            content = b64decode(body, validate=True) if is_base64 else body.encode()
        except (NotBase64, UnicodeEncodeError) as error:
            raise ValueError(f"the body of the result cannot be read: {error}") from None
        named = {str(name): str(value) for name, value in headers.items()}
        return cls(status, named, content, str(data.get("error") or ""))


class Question(NamedTuple):
    """A request to the server."""

    method: str
    path: str
    """With the query."""
    content: bytes | None = None
    content_type: str = "application/json"


def new_run(
    run_id: str,
    event: RunEvent,
    steps: Sequence[Op],
    retries: int,
    idempotency: str,
    now: int,
) -> Question:
    """Make a run known, with its first steps; `now` in epoch milliseconds."""
    more: dict[str, Any] = {"idempotency": idempotency} if idempotency else {}
    if steps:
        more["steps"] = list(steps)
    body = {
        "run_id": run_id,
        "event": event.as_json(),
        "ts": now,
        "request_version": 2,
        "retries": retries,
        **more,
    }
    return Question("POST", RUNS, _json(body))


def steps_of(run: CheckpointRun, steps: Sequence[Op], now: int) -> Question:
    """Report more steps of a run."""
    body = {
        "run_id": run.run_id,
        "fn_id": run.fn_id,
        "app_id": run.app_id,
        "steps": list(steps),
        "ts": now,
    }
    return Question("POST", f"{RUNS}/{run.run_id}/steps", _json(body))


def actions(run_id: str) -> Question:
    """What is remembered of a run's steps, by their hashes."""
    return Question("GET", f"/v0/runs/{run_id}/actions")


def completion(result: ApiResult) -> dict[str, Any]:
    """The opcode of a response."""
    name = HANDLER_STEP.name
    return {
        "op": "RunComplete",
        "id": HANDLER_STEP.hash,
        "name": name,
        "displayName": name,
        "data": result.as_json(),
        "userland": {"id": name},
    }


def is_complete(steps: Sequence[Op]) -> bool:
    """Whether a run ends with these steps."""
    return any(step.get("op") == "RunComplete" for step in steps)


def read_run(run_id: str, answer: bytes) -> CheckpointRun:
    """What the server says of a new run. Raises `CheckpointError`."""
    data = read_object(answer).get("data")
    if not isinstance(data, dict):
        raise BadCheckpointError("the server's answer names no run: is it an Inngest server?")
    known = {name: str(data.get(name) or "") for name in CheckpointRun._fields}
    return CheckpointRun(**{**known, "run_id": run_id})


def failure(question: Question, status: int, body: bytes) -> CheckpointError | None:
    """The error that an answer is; None for one that is none."""
    if status < 300:
        return None
    kind: type[CheckpointError] = BadCheckpointError
    if status in (401, 403):
        kind = CheckpointRefusedError
    elif status in (404, 410):
        kind = UnknownRunError
    elif status in (408, 429) or status >= 500:
        kind = ServerUnavailableError
    path = question.path.partition("?")[0]
    said = body[:300].decode("utf-8", "replace")
    return kind(f"{question.method} {path} was answered by {status}: {said}", status, body)


def read_object(answer: bytes) -> dict[str, Any]:
    """An answer that is a JSON object. Raises `CheckpointError` for any other."""
    try:
        value = orjson.loads(answer)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BadCheckpointError("the server's answer is no JSON object: is it an Inngest server?")
    return value


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
