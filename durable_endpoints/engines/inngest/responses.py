"""How a run's response is kept at an Inngest server, and read back.

Its server keeps a status, a text and one value per header, and gives these to whoever has the run's
token. What does not fit into that (a body that is no text, several headers of one name) rides along
in headers of ours, so that `/wait` answers with exactly the response that the handler made.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import Any

import orjson

from durable_endpoints.engines.base import Outcome
from durable_endpoints.engines.inngest import ops
from durable_endpoints.protocol import failures
from durable_endpoints.protocol.checkpoints import ApiResult
from durable_endpoints.protocol.messages import Headers, StoredResponse
from durable_endpoints.protocol.ops import StepKind, StepRecord, StepState
from durable_endpoints.protocol.runs import Complete, Fail
from durable_endpoints.protocol.step_ids import HANDLER_STEP
from durable_endpoints.sealing import Keyring

_RUN = "durable-result"
"""The run, in a result that this SDK has made."""
_OMITTED = "durable-omitted"
_HEADERS = "durable-headers"
_BODY = "durable-body"
_MOST_HEADERS = 4_000
"""Letters of headers that ride in one header."""


class Responses:
    """The responses of one run."""

    def __init__(self, run_id: str, keyring: Keyring) -> None:
        self._run_id = run_id
        self._keyring = keyring

    def result(self, command: Complete) -> ApiResult:
        """A response on its way to the server."""
        head = {_RUN: self._run_id}
        if command.response is None:
            return ApiResult(command.status_code, {**head, _OMITTED: command.omitted})
        if command.until_delivered:
            sealed = self._keyring.seal(self._run_id, "response", command.response)
            return ApiResult(command.status_code, {**head, _BODY: "sealed"}, b64encode(sealed))
        response = StoredResponse.unpack(command.response)
        listed = json.dumps([[_text(name), _text(value)] for name, value in response.headers])
        if len(listed) > _MOST_HEADERS or not _is_text(response.body):
            packed = b64encode(command.response)
            return ApiResult(command.status_code, {**head, _BODY: "packed"}, packed)
        shown = {**_shown(response.headers), **head, _HEADERS: listed}
        return ApiResult(response.status, shown, response.body)

    def failed_handler(self, command: Fail, now: int) -> StepRecord:
        """The failure of a run, with what the application answered, as its last step."""
        form = failures.decode(command.error or b"{}").as_dict()
        form["reason"] = command.reason
        if command.error is None:
            form |= {"name": "RunFailed", "message": command.reason}
        if command.response is not None:
            form["response"] = b64encode(command.response).decode()
            if command.until_delivered:
                sealed = self._keyring.seal(self._run_id, "response", command.response)
                form["sealed"] = b64encode(sealed).decode()
                del form["response"]
        return StepRecord(
            HANDLER_STEP,
            StepKind.HANDLER,
            StepState.FAILED,
            error=orjson.dumps(form),
            began_at=now,
            ended_at=now,
        )

    def outcome(self, status: int, headers: Headers, body: bytes) -> Outcome | None:
        """What the server's answer says of the run; None if it says nothing certain."""
        known = {name.lower(): value.decode("latin-1") for name, value in headers}
        if known.get(_RUN.encode()) == self._run_id:
            return self._completed(ApiResult(status, {}, body), known)
        try:
            told = orjson.loads(body)
        except ValueError:
            return None
        return self.told(told)

    def told(self, told: Any) -> Outcome | None:
        """The same of an output as the server keeps it: a result, an opcode around one, an
        error."""
        if isinstance(told, str):
            try:
                told = orjson.loads(told)
            except ValueError:
                return None
        if not isinstance(told, dict):
            return None
        if isinstance(told.get("error"), dict):
            return self._failed(told["error"])
        if told.get("status") == "running":
            return self._outcome("running")
        if {"name", "message"} <= told.keys() and told.get("op") is None:
            return self._failed(told)
        if isinstance(told.get("data"), dict):
            return self.told(told["data"])
        try:
            result = ApiResult.from_json(told)
        except ValueError:
            return None
        known = {name.lower().encode(): value for name, value in result.headers.items()}
        if known.get(_RUN.encode()) == self._run_id:
            return self._completed(result, known)
        return None

    def _completed(self, result: ApiResult, known: dict[bytes, str]) -> Outcome:
        if (omitted := known.get(_OMITTED.encode())) is not None:
            return self._outcome("completed")._replace(omitted=omitted)
        form, body = known.get(_BODY.encode()), result.body
        if form is not None:
            packed = b64decode(body)
            if form == "sealed":
                packed = self._keyring.unseal(self._run_id, "response", packed)
            response = StoredResponse.unpack(packed)
        else:
            listed = json.loads(known.get(_HEADERS.encode(), "[]"))
            pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in listed]
            response = StoredResponse(result.status, pairs, body)
        return self._outcome("completed")._replace(response=response)

    def _failed(self, error: dict[str, Any]) -> Outcome:
        text = ops.failure_of(error)
        form, failure = orjson.loads(text), failures.decode(text)
        outcome = self._outcome("failed")._replace(error=str(failure), reason="exception")
        if not isinstance(form, dict):
            return outcome
        packed = b64decode(form["response"]) if "response" in form else None
        if "sealed" in form:
            packed = self._keyring.unseal(self._run_id, "response", b64decode(form["sealed"]))
        response = None if packed is None else StoredResponse.unpack(packed)
        return outcome._replace(reason=form.get("reason") or "exception", response=response)

    def _outcome(self, status: str) -> Outcome:
        return Outcome(self._run_id, status, "", None, "", False, "", "", "")


def _shown(headers: Headers) -> dict[str, str]:
    """One value per name. What frames the body is the server's to say."""
    shown: dict[str, str] = {}
    for name, value in headers:
        key, text = _text(name).lower(), _text(value)
        if key not in ("content-length", "transfer-encoding", "connection"):
            shown[key] = f"{shown[key]}, {text}" if key in shown else text
    return shown


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
