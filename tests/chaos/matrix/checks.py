"""What is checked after a round, from what processes wrote down and what is in the database."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from durable_endpoints_server.engine.model import Status
from tests.chaos.matrix.database import Look, look
from tests.chaos.matrix.fleet import LEASE, Fleet
from tests.chaos.matrix.jobs import Job
from tests.chaos.matrix.proxy import LONGEST_HOLD
from tests.chaos.matrix.records import Record, read_records
from tests.durable_endpoints.streams import Frame, Held

_END: Final = 15.0
"""Seconds in which runs that nobody waits for any more must have ended."""
_SILENCE: Final = int(0.7 * LEASE * 1e9)
"""Nanoseconds without a pulse, in which a process may have lost its runs."""
_GRACE: Final = 500_000_000
"""Nanoseconds after a silence, in which a process may begin what it was told before."""
_SHOWN: Final = 300
"""Characters of a wrong answer in a report."""


class Problem(NamedTuple):
    """A broken promise."""

    what: Literal["lost", "repeated", "wrong", "stuck"]
    detail: str


class _Body(NamedTuple):
    at: int
    process: int
    entry: int
    entered: int
    phase: int
    name: str


class _Silences:
    """When processes were stopped or got no processor, and when their connections were held."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._ends: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._holds: list[tuple[int, int]] = []

    def pulse(self, record: Record) -> None:
        """A sign of life."""
        last = self._last.get(record.process, record.at)
        self._last[record.process] = record.at
        if record.at - last > _SILENCE:
            self._ends[record.process].append((last, record.at))

    def hold(self, at: int) -> None:
        """A proxy holds what it shall pass on."""
        self._holds.append((at, at + int(LONGEST_HOLD * 1e9)))

    def hide(self, body: _Body, since: int) -> bool:
        """Whether what happened at `since` was hidden from the execution of `body`."""
        return any(
            began < since and body.entered < ended + _GRACE
            for began, ended in [*self._ends[body.process], *self._holds]
        )


class Witness:
    """Everything that was seen of one round."""

    def __init__(self, fleet: Fleet, prefix: str) -> None:
        self.problems: list[Problem] = []
        self.jobs: list[Job] = []
        self.records: list[tuple[str, Path]] = []
        """The clients' records, one file for each batch."""
        self.looks: list[Look] = []
        """What was on disk whenever the database's process had died."""
        self.run_count = self.body_count = self.late = 0
        self._fleet = fleet
        self._prefix = f"{prefix}-"
        self._final: Look | None = None
        self._silences = _Silences()
        self._began = time.monotonic_ns()

    def _note(self, what: Literal["lost", "repeated", "wrong", "stuck"], detail: str) -> None:
        self.problems.append(Problem(what, detail))

    def note_waiting(self, batch: str) -> None:
        """Note which jobs of a batch have no answer yet, though all had time enough."""
        for client, path in self.records:
            if path.stem == batch:
                records = read_records(path)
                done = {one.about["job"] for one in records if one.kind == "answer"}
                waits = [
                    job.path
                    for job in self.jobs
                    if job.name.startswith(f"{batch}-") and job.name not in done
                ]
                self._note("stuck", f"{client} waits for ever: {waits}")

    async def until_all_ended(self) -> None:
        """Wait until every run of the round has ended."""
        deadline = time.monotonic() + _END
        while True:
            self._final = found = await asyncio.to_thread(look, self._fleet.database)
            open_runs = {
                name: [run for run in runs if not Status(run.status).is_final]
                for name, runs in found.runs.items()
                if name.startswith(self._prefix)
            }
            left = [f"{name}: {runs}" for name, runs in open_runs.items() if runs]
            if not left:
                return
            if time.monotonic() > deadline:
                self._note("stuck", f"these runs do not end: {left}")
                return
            await asyncio.sleep(0.05)

    def check(self) -> None:
        """Note every promise that was broken."""
        for name, proxy in self._fleet.proxies.items():
            for at in proxy.holds if name.endswith("-server") else ():
                self._silences.hold(at)
        answered = self._check_clients()
        self._check_bodies(answered)
        self._check_database()
        for death in self._fleet.deaths:
            self._note("wrong", death)
        self._fleet.deaths.clear()

    # What clients got

    def _check_clients(self) -> dict[str, int]:
        """When each job was answered first."""
        answers: dict[str, list[tuple[str, Record]]] = defaultdict(list)
        frames: dict[tuple[str, str], list[Frame]] = defaultdict(list)
        for client, path in self.records:
            for record in read_records(path):
                if record.kind == "answer":
                    answers[record.about["job"]].append((client, record))
                elif record.kind == "frame":
                    name, *frame = record.about
                    frames[client, name].append(Frame(*frame))
                elif record.kind == "odd":
                    self._note("wrong", f"{client}: {record.about}")
        for job in self.jobs:
            self._check_answers(job, [record.about for _, record in answers[job.name]])
        self._check_streams(frames, answers)
        return {name: min(one.at for _, one in found) for name, found in answers.items() if found}

    def _check_answers(self, job: Job, found: list[dict[str, Any]]) -> None:
        if job.is_anonymous:
            found = [answer for answer in found if answer["status"] not in (0, 303, 503)]
        for answer in found:
            if not job.is_right(answer["status"], answer["body"]):
                self._note("wrong", f"{job.path}: {answer['status']} {answer['body'][:_SHOWN]}")
            if "Traceback" in answer["body"]:
                self._note("wrong", f"{job.path}: a stack trace left the process")
        if not job.is_anonymous and len({(one["body"], one["run"]) for one in found}) > 1:
            shown = [(one["run"], one["body"][:_SHOWN]) for one in found]
            self._note("wrong", f"{job.path}: two answers: {shown}")

    def _check_streams(
        self,
        frames: dict[tuple[str, str], list[Frame]],
        answers: dict[str, list[tuple[str, Record]]],
    ) -> None:
        truth: dict[tuple[str, str], Frame] = {}
        jobs = {job.name: job for job in self.jobs}
        for (client, name), found in frames.items():
            for frame in found:
                if frame.id is None or frame.event == "inngest.metadata":
                    continue
                if truth.setdefault((name, frame.id), frame) != frame:
                    self._note("wrong", f"{name}: {frame} is not {truth[name, frame.id]}")
            answer = next((one.about for who, one in answers[name] if who == client), None)
            if answer is not None and answer["status"] == 200:
                self._check_stream(f"{client} {name}", found, jobs[name].streamed(answer["body"]))

    def _check_stream(self, who: str, frames: list[Frame], expected: list[str]) -> None:
        try:
            held = Held().take(frames)
        except AssertionError as error:
            self._note("wrong", f"{who}: {error}")
            return
        texts: dict[str | None, str] = defaultdict(str)
        for step, data, is_committed in held.chunks:
            texts[step] += data
            if not is_committed:
                self._note("wrong", f"{who}: {data!r} was never committed")
        outside = texts.pop(None, "")
        if [outside, *sorted(texts.values())] != expected:
            self._note("wrong", f"{who}: it read {[outside, *texts.values()]}, not {expected}")

    # What ran

    def _check_bodies(self, answered: dict[str, int]) -> None:
        entered: dict[tuple[int, int], int] = {}
        bodies: dict[str, list[_Body]] = defaultdict(list)
        for record in read_records(self._fleet.bodies):
            if record.at < self._began:
                continue
            if record.kind == "pulse":
                self._silences.pulse(record)
            elif not record.about[0].startswith(self._prefix):
                continue
            elif record.kind == "entered":
                entered[record.process, record.about[1]] = record.at
            elif record.kind == "begins":
                run, entry, phase, name = record.about
                at_entry = entered[record.process, entry]
                bodies[run].append(_Body(record.at, record.process, entry, at_entry, phase, name))
        self.body_count = sum(map(len, bodies.values()))
        anonymous = {job.name for job in self.jobs if job.is_anonymous}
        for run, begun in bodies.items():
            if run not in anonymous:
                self._check_run(run, begun, answered.get(run.partition("/")[0]))

    def _check_run(self, run: str, begun: list[_Body], answered: int | None) -> None:
        """No body begins whose result was acknowledged: to a later body, to a client, or, as the
        database shows, to the disk of a process that was killed."""
        on_disk = [
            (look.at, {step for name, _, step in look.steps if name == run}) for look in self.looks
        ]
        late: dict[tuple[int, int], set[int]] = defaultdict(set)
        for body in begun:
            known = [other.at for other in begun if other.phase > body.phase]
            known += [at for at, steps in on_disk if body.name in steps]
            known += [] if answered is None else [answered]
            since = min(known, default=body.at)
            if since >= body.at:
                continue
            if self._may_be_late(body, since):
                late[body.process, body.entry].add(body.phase)
            else:
                after = (body.at - since) / 1e6
                self._note("repeated", f"{run}: {body.name} ran {after:.0f} ms after it was done")
        self.late += len(late)
        for phases in late.values():
            if len(phases) > 1:
                self._note("repeated", f"{run}: an execution that had lost it went on: {phases}")

    def _may_be_late(self, body: _Body, since: int) -> bool:
        """Whether this execution may have lost its run without being able to know: with a server,
        it had begun before, or it was on its way to a process that was not heard of meanwhile. It
        may begin what it had in hand, and hears then that the run is not its own any more."""
        if self._fleet.mode == "embedded":
            return False
        return body.entered < since or self._silences.hide(body, since)

    # What is on disk

    def _check_database(self) -> None:
        final = self._final
        assert final is not None
        seen = [*self.looks, final]
        for found in seen:
            if found.integrity != "ok":
                self._note("lost", f"the database is damaged: {found.integrity}")
        for earlier, later in pairwise(seen):
            for step, value in earlier.steps.items():
                if later.steps.get(step) != value:
                    self._note("lost", f"{step}: {value!r} became {later.steps.get(step)!r}")
        ours = {name: runs for name, runs in final.runs.items() if name.startswith(self._prefix)}
        self.run_count = sum(map(len, ours.values()))
        for job in self.jobs:
            runs = ours.get(job.name, [])
            if not job.is_anonymous and len(runs) != 1:
                self._note("wrong", f"{job.path} has {len(runs)} runs: {runs}")
            expected = Status.CANCELLED if job.kind == "endless" else Status.COMPLETED
            for run in runs:
                if Status(run.status).is_final and run.status != expected:
                    self._note("wrong", f"{job.path} ended as {Status(run.status).label}: {run}")
            if job.kind == "family":
                for n in range(2):
                    children = ours.get(f"{job.name}/{n}", [])
                    if [child.status for child in children] != [Status.COMPLETED]:
                        self._note("wrong", f"{job.path} has the children {children}")
