"""Nothing waits for a safety net: where nothing has gone wrong lately, whatever can go on does so
at once. A wake-up that was lost is late, even if a later look, or another wake-up, makes up for it.
"""

from __future__ import annotations

from durable_endpoints_server.engine.facts import Change, ChildCreated, StepResolved, StepWritten
from durable_endpoints_server.engine.model import Policy, Status
from durable_endpoints_server.engine.transitions import in_quarantine
from durable_endpoints_server.store.memory import MemoryStore
from tests.simulation.system.loop import SimulatedLoop

_LATE = 5.0
"""Seconds: longer than what anybody has to wait for takes here, on a slow disk too."""
_SETTLED = 900.0
"""Seconds after something went wrong in which it may still make things late: leases end, clients
lose patience, clocks come together again."""
_POLICY = Policy()


class Promptness:
    """Knows since when each run could go on."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.wrong: list[str] = []
        self._loop = loop
        self._quiet_from = 0.0
        self._ready: dict[str, float] = {}
        """When runs became ready that nobody executes yet."""
        self._due: dict[tuple[str, str], int] = {}
        """When open steps are due, on the engine's clock."""
        self._ended: dict[str, float] = {}

    def disturbed(self) -> None:
        """Something goes wrong."""
        self._quiet_from = self._loop.time() + _SETTLED

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has gone wrong lately."""
        return self._loop.time() >= self._quiet_from

    def written(self, store: MemoryStore, change: Change, now: int | None) -> None:
        """A change was written, when the engine's clock showed `now`, if that is known."""
        self._look_at_run(store, change.run_id)
        for fact in change.facts:
            if isinstance(fact, ChildCreated):
                self._look_at_run(store, fact.run.id)
            elif isinstance(fact, StepWritten | StepResolved):
                self._look_at_step(store, change.run_id, fact.step.id.hash, now)

    def _look_at_step(self, store: MemoryStore, run_id: str, key: str, now: int | None) -> None:
        step = store._rows[run_id].steps[key]
        due = self._due.pop((run_id, key), None)
        if step.due is not None:
            self._due[run_id, key] = step.due
        if due is not None and due != step.due and now is not None:
            seconds = (now - due) / 1_000
            self._compare(f"step {step.id} of {run_id}", seconds, self._loop.time() - seconds)

    def _look_at_run(self, store: MemoryStore, run_id: str) -> None:
        row = store._rows.get(run_id)
        if row is None:
            return
        if row.ended is not None:
            self._ended.setdefault(run_id, self._loop.time())
        if row.run.status is Status.READY and not in_quarantine(row.run, _POLICY):
            self._ready.setdefault(run_id, self._loop.time())
        elif (since := self._ready.pop(run_id, None)) is not None:
            self._compare(f"the next execution of {run_id}", self._loop.time() - since, since)

    def answered(self, run_id: str, asked_at: float) -> None:
        """A client, who has asked at some time, got the run's answer."""
        ended = self._ended.get(run_id)
        if ended is not None:
            since = max(ended, asked_at)
            self._compare(f"the answer of {run_id}", self._loop.time() - since, since)

    def _compare(self, what: str, seconds: float, since: float) -> None:
        if seconds > _LATE and since >= self._quiet_from:
            self.wrong.append(f"{what} comes {seconds:.1f} s late")
