"""What the client of a run gets when it is not the handler's own response, passed on as it came."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from durable_endpoints import answers
from durable_endpoints.calls import call_here
from durable_endpoints.engines.base import Outcome
from durable_endpoints.options import EndpointOptions
from durable_endpoints.protocol.messages import StoredResponse

if TYPE_CHECKING:
    from durable_endpoints.door import Door

logger = logging.getLogger("durable_endpoints")


class Reply:
    """Answers the client of one request, once.

    In a re-entry there is none, but middlewares outside want to see a response all the same.
    """

    def __init__(self, door: Door, run_id: str) -> None:
        self._door = door
        self.run_id = run_id
        self.is_given = False

    async def later(self, options: EndpointOptions) -> None:
        """The run goes on: tell the client where its answer will be."""
        if self.is_given:
            return
        self.is_given = True
        if self._door.reentry is not None:
            headers = answers.durable_headers(self.run_id, "running")
            await self._send(Response(status_code=202, headers=headers))
        else:
            await self._send(await self._later(options))

    is_stream = False
    """Whether the client gets the run's stream, and the response as its last frame."""

    async def stored(self, response: StoredResponse, succeeded: bool = True) -> None:
        """A finished response, of a run that has succeeded, or failed."""
        if not self.is_given:
            self.is_given = True
            door = self._door
            await answers.send_stored(response, self.run_id, door.snapshot, door.send_out)

    async def outcome(self, outcome: Outcome) -> None:
        """How a run ended, whichever way."""
        if outcome.response is not None:
            await self.stored(outcome.response, outcome.status == "completed")
        elif not self.is_given:
            await self._send(answers.outcome_problem(outcome))

    async def ended(self, status: str, reason: str) -> None:
        """The run was ended from outside."""
        outcome = Outcome(self.run_id, status, reason, None, "", False, "", "", "")
        await self.outcome(outcome)

    async def plain(self, response: Response) -> None:
        """An answer of ours that is made already."""
        if not self.is_given:
            await self._send(response)

    async def closed(self) -> None:
        """Return when the client has been sent everything: at once, unless that is a stream."""

    async def unavailable(self, detail: str, executed: str = "") -> None:
        """503: something could not be made durable. `executed` names a step whose body ran."""
        headers = {"Retry-After": "1"}
        if self.run_id:
            headers |= answers.durable_headers(self.run_id, "unavailable")
        if executed:
            headers[answers.STEP_EXECUTED] = _header_text(executed)
        await self.problem(503, "engine_unavailable", detail, headers)

    async def problem(
        self, status_code: int, error: str, detail: str, headers: dict[str, str] | None = None
    ) -> None:
        """A JSON error of ours."""
        if not self.is_given:
            more = {"run_id": self.run_id} if self.run_id else {}
            await self._send(answers.problem(status_code, error, detail, headers, **more))

    async def _later(self, options: EndpointOptions) -> Response:
        application, run_id = self._door.application, self.run_id
        token = application.engine.sign_run(run_id, options.cancellable)
        status = "running"
        respond = options.async_response
        if callable(respond):
            request = Request(self._door.snapshot)
            try:
                response = await call_here(respond, request, run_id, token)
                if not isinstance(response, Response):
                    raise TypeError(f"async_response gave {response!r}, not a Response")
                return answers.with_durable_headers(response, run_id, status)
            except Exception:
                logger.exception(
                    "async_response of run %s failed; the client is redirected", run_id
                )
        url = await self.url(options, token)
        if respond == "token":
            return answers.token_answer(url, run_id, token)
        return answers.redirect(url, run_id, status)

    async def url(self, options: EndpointOptions, token: str) -> str:
        """Where the run can be waited for, and followed."""
        application, scope = self._door.application, self._door.snapshot
        where = (
            self.run_id,
            token,
            application.proxy_path,
            scope.get("root_path", ""),
            application.settings.public_url,
        )
        try:
            return await answers.redirect_url(options.async_redirect_url, *where)
        except Exception:
            logger.exception("async_redirect_url of run %s failed; /wait is used", self.run_id)
            return await answers.redirect_url(None, *where)

    async def _send(self, response: Response) -> None:
        self.is_given = True
        await answers.send_response(response, self._door.snapshot, self._door.send_out)


def _header_text(text: str) -> str:
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)
