"""A client that does not give up, and may be killed: what it has, it has written down.

In its next life it goes on where it was: with what it was told of its runs, and, where it was told
nothing, by repeating its request with the same Idempotency-Key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.matrix.jobs import Job
from tests.chaos.matrix.records import Recorder, read_records
from tests.durable_endpoints.streams import frames_of

Cross = Callable[[str], None]

_PAUSE = 0.05
_PATIENCE = 2.0
"""Seconds of silence after which it asks again."""
_FOLLOW = (202, 303)


class Client:
    """All jobs of one client process."""

    def __init__(self, base: str, path: Path, cross: Cross, events: str = "") -> None:
        """`base` is the application's URL, `path` where everything is written down, and `events`
        where a server takes events: else the application sends them."""
        self.base = base
        self._events = events
        self._cross = cross
        self._recorder = Recorder(path)
        self._done: set[str] = set()
        self._where: dict[str, str] = {}
        self._last_id: dict[str, str] = {}
        self._responses: dict[str, Any] = {}
        """Last frames of streams. After that one there is nothing more to ask for."""
        for record in read_records(path):
            if record.kind == "answer":
                self._done.add(record.about["job"])
            elif record.kind == "where":
                self._where.setdefault(*record.about)
            elif record.kind == "frame":
                self._held(*record.about)

    def _held(self, name: str, id: str | None, event: str, data: Any) -> None:
        if id is not None:
            self._last_id[name] = id
        if event == "inngest.response":
            self._responses[name] = data["response"]

    async def do(self, jobs: list[Job]) -> None:
        """See all of them through."""
        left = [job for job in jobs if job.name not in self._done]
        async with httpx.AsyncClient(timeout=_PATIENCE, trust_env=False, verify=False) as http:
            for is_last in (False, True):
                await asyncio.gather(
                    *(self._do(http, job) for job in left if job.is_last == is_last)
                )

    async def _do(self, http: httpx.AsyncClient, job: Job) -> None:
        if job.is_anonymous:
            await self._ask_once(http, job)
            return
        errand = asyncio.create_task(self._run_errand(http, job))
        try:
            while not (await self._ask(http, job)):
                await asyncio.sleep(_PAUSE)
        finally:
            errand.cancel()

    async def _ask(self, http: httpx.AsyncClient, job: Job) -> bool:
        """One request. Whether that was the last one."""
        try:
            if job.is_stream:
                return await self._read_on(http, job)
            return await self._ask_on(http, job)
        except httpx.TransportError:
            return False

    async def _ask_once(self, http: httpx.AsyncClient, job: Job) -> None:
        answer: dict[str, Any] = {"job": job.name, "status": 0, "body": "", "run": None}
        try:
            async with self._request(http, job, {}) as response:
                text = (await response.aread()).decode()
                answer.update(status=response.status_code, body=text)
        except httpx.TransportError:
            pass
        self._recorder.note("answer", answer)

    # An answer

    async def _ask_on(self, http: httpx.AsyncClient, job: Job) -> bool:
        async with self._request(http, job, {}) as response:
            return await self._take(http, job, response)

    async def _take(self, http: httpx.AsyncClient, job: Job, response: httpx.Response) -> bool:
        self._cross("answer-arrives")
        body = b""
        async for piece in response.aiter_bytes():
            body += piece
            self._cross("answer-arrives")
        status = response.status_code
        if status in _FOLLOW:
            self._go_to(job, response)
            return False
        if status == 503:
            if b"Traceback" in body:
                self._recorder.note("odd", [job.name, status, body.decode("utf-8", "replace")])
            return False
        self._cross("answer-complete")
        run = response.headers.get("durable-run-id")
        text = body.decode("utf-8", "replace")
        self._recorder.note("answer", {"job": job.name, "status": status, "body": text, "run": run})
        self._cross("answer-kept")
        return True

    def _go_to(self, job: Job, response: httpx.Response) -> None:
        location = response.headers.get("location")
        if location is not None and job.name not in self._where:
            self._where[job.name] = str(response.url.copy_with(query=None).join(location))
            self._recorder.note("where", [job.name, self._where[job.name]])

    async def _run_errand(self, http: httpx.AsyncClient, job: Job) -> None:
        """Do what the run waits for, once it has begun, until that is acknowledged."""
        while job.name not in self._where:
            await asyncio.sleep(_PAUSE)
        while job.errand is not None:
            try:
                response = await self._do_errand(http, job, *job.errand)
                if response.status_code == 200 and response.json():
                    self._recorder.note("errand", job.name)
                    return
                if response.status_code not in (200, 503):
                    self._recorder.note("odd", [job.name, response.status_code, response.text])
            except httpx.TransportError:
                pass
            await asyncio.sleep(_PAUSE)

    async def _do_errand(
        self, http: httpx.AsyncClient, job: Job, method: str, path: str
    ) -> httpx.Response:
        if self._events and job.event is not None:
            return await http.post(self._events, json=job.event)
        return await http.request(method, f"{self.base}{path}" if path else self._where[job.name])

    # A stream

    async def _read_on(self, http: httpx.AsyncClient, job: Job) -> bool:
        if job.name not in self._responses:
            await self._follow(http, job)
        if job.name not in self._responses:
            return False
        answer = self._responses[job.name]
        run = httpx.URL(self._where[job.name]).params["runId"]
        self._cross("answer-complete")
        self._recorder.note(
            "answer",
            {"job": job.name, "status": answer["statusCode"], "body": answer["body"], "run": run},
        )
        self._cross("answer-kept")
        return True

    async def _follow(self, http: httpx.AsyncClient, job: Job) -> None:
        """Read until the connection ends."""
        headers = {"accept": "text/event-stream"}
        if job.name in self._last_id:
            headers["last-event-id"] = self._last_id[job.name]
        rest = b""
        async with self._request(http, job, headers) as response:
            if response.status_code != 200:
                body = await response.aread()
                if response.status_code in _FOLLOW:  # its stream had not begun yet
                    self._go_to(job, response)
                elif response.status_code != 503:
                    self._recorder.note("odd", [job.name, response.status_code, body.decode()])
                return
            url = response.headers.get("durable-run-url")
            if url is not None and job.name not in self._where:
                self._where[job.name] = f"{self.base}{url}"
                self._recorder.note("where", [job.name, self._where[job.name]])
            async for piece in response.aiter_bytes():
                whole, end, rest = (rest + piece).rpartition(b"\n\n")
                for frame in frames_of(whole + end) if whole else []:
                    self._cross("frame-arrives")
                    self._recorder.note("frame", [job.name, *frame])
                    self._held(job.name, *frame)
                    self._cross("frame-kept")

    # A request

    def _request(self, http: httpx.AsyncClient, job: Job, headers: dict[str, str]) -> Any:
        where = self._where.get(job.name)
        if where is not None:
            return http.stream("GET", where, headers=headers)
        if not job.is_anonymous:
            headers = {**headers, "idempotency-key": job.name}
        headers["content-length"] = str(len(job.body))
        url = f"{self.base}{job.path}"
        return http.stream("POST", url, headers=headers, content=self._body(job.body))

    async def _body(self, body: bytes) -> AsyncIterator[bytes]:
        self._cross("before-request")
        middle = len(body) // 2
        yield body[:middle]
        self._cross("mid-request")
        yield body[middle:]
        self._cross("request-sent")
