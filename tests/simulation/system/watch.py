"""What must hold after every write, whatever goes wrong: looked at on the disk."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from durable_endpoints.protocol.ops import StepKind, StepState
from durable_endpoints.protocol.step_ids import hash_name
from durable_endpoints_server.engine.facts import (
    Change,
    RunCreated,
    RunEnded,
    StepResolved,
    StepWritten,
)
from durable_endpoints_server.store.memory import MemoryStore


class _Final(NamedTuple):
    """How a step ended, and in which execution."""

    state: StepState
    value: bytes | None
    error: bytes | None
    generation: int


class Watch:
    """Compares each run with what it was before, and bodies that start with what is remembered."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._finals: dict[tuple[str, str], _Final] = {}
        """By run and name of the step."""
        self._ends: dict[str, tuple[Any, ...]] = {}
        self._records: dict[str, tuple[int, int]] = {}
        """How many records a run's stream has, and their last position."""
        self._sleeps: dict[tuple[str, str], int] = {}
        """When sleeps are due."""
        self._tries: dict[tuple[str, int], dict[str, int]] = {}
        """The last try of each step that has ended, by run and generation."""
        self._events: set[str] = set()
        """Events whose senders were told that they are kept."""
        self._promised: set[tuple[str, str]] = set()
        """Steps and, without a name, ends and beginnings of runs of which somebody was told that
        they are on disk."""

    def written(self, store: MemoryStore, change: Change, now: int | None) -> None:
        """A change was written, when the engine's clock showed `now`, if that is known."""
        row = store._rows.get(change.run_id)
        if row is None:
            return
        run_id = change.run_id
        for fact in change.facts:
            if isinstance(fact, StepWritten | StepResolved) and fact.step.kind is StepKind.SLEEP:
                due = self._sleeps.setdefault((run_id, fact.step.id.hash), fact.step.due or 0)
                if fact.step.state is not StepState.PENDING and now is not None and now < due:
                    self.wrong.append(f"sleep {fact.step.id} of {run_id} ends early")
        for step in row.steps.values():
            key = (run_id, str(step.id))
            known = self._finals.get(key)
            if known is None:
                if step.state >= StepState.DONE:
                    generation = row.run.generation
                    self._finals[key] = _Final(step.state, step.value, step.error, generation)
            elif (step.state, step.value, step.error) != known[:3]:
                self.wrong.append(f"{key} was {known}, and is {step}")
        if row.ended is not None:
            end = (row.run.status, row.run.reason, row.ended.response, row.ended.error)
            if self._ends.setdefault(run_id, end) != end:
                self.wrong.append(f"run {run_id} ended as {self._ends[run_id]}, and then as {end}")
        elif run_id in self._ends:
            self.wrong.append(f"run {run_id} goes on after its end")
        self._look_at_stream(run_id, row)

    def _look_at_stream(self, run_id: str, row: Any) -> None:
        count, last = self._records.get(run_id, (0, 0))
        for record in row.records[count:]:
            if record.position <= last:
                self.wrong.append(f"position {record.position} of {run_id} is given twice")
            elif record.position != last + 1 and not row.stream.is_wary:
                self.wrong.append(f"positions of {run_id} go from {last} to {record.position}")
            last = record.last
        self._records[run_id] = len(row.records), last

    def acknowledged(self, change: Change) -> None:
        """Somebody was told that a change is on disk."""
        for fact in change.facts:
            if isinstance(fact, StepWritten | StepResolved) and fact.step.state >= StepState.DONE:
                self._promised.add((change.run_id, str(fact.step.id)))
            elif isinstance(fact, RunCreated | RunEnded):
                self._promised.add((fact.run.id, type(fact).__name__))

    def event_kept(self, store: MemoryStore, event_id: str) -> None:
        """The sender of an event was told that it is kept."""
        self._events.add(event_id)
        if event_id not in store._events:
            self.wrong.append(f"{event_id} is told as kept, and is not")

    def signal_taken(self, store: MemoryStore, run_id: str, number: int) -> None:
        """The sender of a signal, which says a number, was told that a run has it."""
        values = [
            orjson.loads(step.value or b"null")
            for step in store._rows[run_id].steps.values()
            if step.kind is StepKind.SIGNAL and step.state is StepState.DONE
        ]
        if number not in [value["data"] for value in values if value is not None]:
            self.wrong.append(f"signal {number} is told as taken, and {run_id} does not have it")

    def cancelled(self, store: MemoryStore, run_id: str, is_quiet: bool) -> None:
        """Somebody was told that a run is cancelled; `is_quiet`: nothing has gone wrong lately."""
        row = store._rows[run_id]
        if row.ended is None:
            self.wrong.append(f"{run_id} is told as cancelled, and goes on")
        below = [run for run in store.begun() if run.parent_run == run_id]
        if is_quiet and not all(run.status.is_final for run in below):
            self.wrong.append(f"{run_id} is cancelled, and not {[run.id for run in below]}")

    def power_lost(self, store: MemoryStore) -> None:
        """What was not synced may be gone. What was acknowledged may not."""
        kept: set[tuple[str, str]] = set()
        for run_id, row in store._rows.items():
            kept.add((run_id, RunCreated.__name__))
            if row.ended is not None:
                kept.add((run_id, RunEnded.__name__))
            for step in row.steps.values():
                if step.state >= StepState.DONE:
                    kept.add((run_id, str(step.id)))
        for event_id in sorted(self._events - store._events.keys()):
            self.wrong.append(f"{event_id} was kept, and went with the power")
        for run_id, what in sorted(self._promised - kept):
            self.wrong.append(f"{what} of {run_id} was acknowledged, and went with the power")
        self._sleeps.clear()
        self._finals = {key: final for key, final in self._finals.items() if key in kept}
        self._ends = {
            run_id: end for run_id, end in self._ends.items() if (run_id, RunEnded.__name__) in kept
        }
        self._records = {
            run_id: (len(row.records), row.records[-1].last if row.records else 0)
            for run_id, row in store._rows.items()
        }

    def body_ends(self, run_id: str, generation: int, name: str, attempt: int) -> None:
        """A try of a step ends, in an execution of this generation."""
        self._tries.setdefault((run_id, generation), {})[name] = attempt

    def body_starts(self, store: MemoryStore, run_id: str, generation: int, name: str) -> None:
        """A body starts, in an execution of this generation."""
        self._look_at_tries(store, run_id, generation, name)
        final = self._finals.get((run_id, name))
        if final is not None:
            self.wrong.append(
                f"the body of {name} of {run_id} starts in execution {generation}, though "
                f"{final.generation} has ended that step"
            )

    def _look_at_tries(self, store: MemoryStore, run_id: str, generation: int, name: str) -> None:
        """What came of the bodies before is on disk, unless somebody else has the run by now."""
        row = store._rows.get(run_id)
        if row is None or row.run.generation != generation or row.ended is not None:
            return
        for before, attempt in self._tries.get((run_id, generation), {}).items():
            step = row.steps.get(hash_name(before))
            if step is None or not (step.is_final or step.attempt >= attempt):
                self.wrong.append(
                    f"the body of {name} of {run_id} starts, and try {attempt} of {before} is lost "
                    "if the process ends now"
                )
