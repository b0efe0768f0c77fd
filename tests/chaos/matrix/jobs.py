"""What clients ask for, and what they must get, computed from the job alone."""

from __future__ import annotations

import hashlib
import random
import re
from typing import Any, NamedTuple

import orjson

KINDS = (
    "order",
    "quick",
    "download",
    "blocking",
    "background",
    "family",
    "story",
    "murmur",
    "approval",
    "signal",
    "endless",
)
_STEPS = {"story": ("first", "left", "right"), "murmur": ("only",)}
"""The steps that stream, of those jobs that are read as streams."""
_BODY = 24 * 1024
"""Bytes of a request, roughly, so that it travels in several pieces."""
_PIECES = 12
_WORDS = 6


class Job(NamedTuple):
    """One request to make, and to see through to its end."""

    kind: str
    name: str
    """Names the run, and is its Idempotency-Key."""
    is_anonymous: bool = False
    """Asked once, without a key: whatever was accepted must end all the same."""
    is_last: bool = False
    """Begun when the client's other jobs are done."""

    @property
    def path(self) -> str:
        return f"/{self.kind}/{self.name}"

    @property
    def body(self) -> bytes:
        return f"{self.name} ".encode() * (_BODY // (len(self.name) + 1))

    @property
    def errand(self) -> tuple[str, str] | None:
        """What somebody has to do so that the run ends: a method, and a path, which is empty where
        the run itself is meant."""
        errands = {
            "approval": ("POST", f"/do/approve/{self.name}"),
            "signal": ("POST", f"/do/tell/{self.name}"),
            "endless": ("DELETE", ""),
        }
        return errands.get(self.kind)

    @property
    def event(self) -> dict[str, Any] | None:
        """The event that the errand sends, for a server."""
        if self.kind != "approval":
            return None
        return {"name": "ok", "id": f"ok {self.name}", "data": {"run": self.name}}

    @property
    def is_stream(self) -> bool:
        """Whether it is read as a stream."""
        return self.kind in _STEPS

    def is_right(self, status: int, body: str) -> bool:
        """Whether this is the answer."""
        if self.kind == "endless":
            return status == 409 and orjson.loads(body)["error"] == "cancelled"
        return status == 200 and (
            self._is_told(body) if self.is_stream else body == self._expected()
        )

    def _expected(self) -> str:
        name = self.name
        quoted = {
            "blocking": f"{name} 1 2",
            "background": f"{name} ['one', 'two', 'three']",
            "family": f"{name} [0, 10]",
            "approval": f"{name} {{'run': '{name}'}}",
            "signal": f"{name} yes",
        }
        if self.kind in quoted:
            return f'"{quoted[self.kind]}"'
        if self.kind == "quick":
            return f"{name} " * 200
        if self.kind == "download":
            return "".join(f"{name} {n}\n" * 20 for n in range(_PIECES))
        return f"{name} {hashlib.sha256(self.body).hexdigest()} [1, 2, 3, True]"

    def _is_told(self, body: str) -> bool:
        told = orjson.loads(body)
        outside = [f"[title of {self.name}]", "[between]", "[end]"]
        return told["outside"] == (outside if self.kind == "story" else []) and all(
            _is_from_one_try(text, name)
            for text, name in zip(told["steps"], _STEPS[self.kind], strict=True)
        )

    def streamed(self, body: str) -> list[str]:
        """What its stream must have held: the text outside steps, and that of each step, sorted."""
        told = orjson.loads(body)
        return ["".join(told["outside"]), *sorted(told["steps"])]


def _is_from_one_try(text: str, name: str) -> bool:
    mark = re.match(rf"\[{name} (\w+) ", text)
    return mark is not None and text == "".join(f"[{name} {mark[1]} {n} é]" for n in range(_WORDS))


def make_jobs(chance: random.Random, prefix: str, last: str = "") -> list[Job]:
    """One of each kind, in any order but for the `last` one, and an anonymous one."""
    kinds = chance.sample(KINDS, k=len(KINDS))
    jobs = [Job(kind, f"{prefix}-{n}", is_last=kind == last) for n, kind in enumerate(kinds)]
    return [*jobs, Job(chance.choice(("order", "quick")), f"{prefix}-anonymous", True)]


def to_json(jobs: list[Job]) -> list[list[Any]]:
    return [list(job) for job in jobs]


def from_json(found: list[list[Any]]) -> list[Job]:
    return [Job(*job) for job in found]
