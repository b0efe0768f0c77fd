"""Events and signals: received, matched with open waits, kept for later ones.

Stands for `events.py` and `signals.py`. Which event resolves which wait is decided by the shipped
`engine/matching.py`, and whether that is right, by the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from durable_endpoints.protocol.errors import LostRunError, StorageError
from durable_endpoints.protocol.events import SIGNAL
from durable_endpoints.protocol.ops import NewEvent, StepRecord
from durable_endpoints_server.engine.facts import Change, EventReceived, EventSettled
from durable_endpoints_server.engine.matching import (
    first_hit,
    hits,
    resolution,
    resolutions,
    was_open,
)
from durable_endpoints_server.engine.model import Event, Match, Run, Status, Wait
from durable_endpoints_server.engine.transitions import Resolve, decide, resolve_all
from durable_endpoints_server.store.base import RefusedError
from tests.simulation.model.disk import read
from tests.simulation.model.loop import MS, Future, Task

if TYPE_CHECKING:
    from tests.simulation.model.engine import Engine
    from tests.simulation.model.live import Live

_MANY = 1_000
_PAUSE = 10 * MS


class Events:
    """Receives events, and resolves waits with them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._unsettled: set[str] = set()
        self._publishing: dict[str, Future] = {}

    def publish(self, new: NewEvent) -> Future:
        """Receive an event. What this returns is done once it is on disk."""
        now = self._engine.clock.now()
        event = Event(new.id, new.name, new.data, new.ts if new.ts is not None else now, now)
        accepted = self._publishing.get(event.id)
        if accepted is None:
            accepted = self._publishing[event.id] = Future()
            self._engine.spawn(self._publish(event, accepted))
        return accepted

    def _publish(self, event: Event, accepted: Future) -> Task:
        engine = self._engine
        is_known = event.id in self._unsettled
        self._unsettled.add(event.id)
        failure: Exception | None = None
        resolved: list[tuple[Run, Future]] = []
        is_on_disk = False
        arrival = read(engine.disk.store.arrival(event))
        yield engine.stale()
        if not arrival.known:
            ticket = engine.disk.submit(Change((EventReceived(event, settled=False),)))
            resolved = self._resolve_idle(event, hits(event, arrival.matches))
            try:
                yield ticket
                is_on_disk = True
                engine.spawn(self._settle(event, resolved))
            except RefusedError:
                yield from self._announce(resolved)
            except StorageError as error:
                failure = error
        del self._publishing[event.id]
        if not is_on_disk and not is_known:
            self._unsettled.discard(event.id)
        accepted.set(None, failure)

    def catch_up(self) -> Task:
        """Every event received until now has resolved what it resolves."""
        recovery, waiting = self._engine.recovery, set(self._unsettled)
        while recovery.is_behind or waiting & self._unsettled:
            if recovery.is_behind and recovery.is_failing:
                raise StorageError("events are on disk that could not be matched yet")
            yield _PAUSE

    def look_back(self, live: Live, key: str) -> Task:
        """Give an open wait of a live run the earliest kept event that it matches."""
        engine = self._engine
        found = read(engine.disk.store.waits_of(live.id))
        yield engine.stale()
        waits = [match.wait for match in found if match.step.id.hash == key]
        names = sorted({wait.alternative.event for wait in waits})
        while names and live.awaited(key) is not None:
            earliest = yield from self._earliest(live.run, names, waits, live.has_used)
            if earliest is None:
                return
            wait, event = earliest
            live.offer(key, resolution(wait, event), event.id, again=False)

    def kept_for(self, run: Run, step: StepRecord, has_used: Callable[[str], bool]) -> Task:
        """What an open wait of a run that nobody executes gets of the kept events, and the id of
        that one."""
        found = read(self._engine.disk.store.waits_of(run.id))
        yield self._engine.stale()
        waits = [match.wait for match in found if match.step.id == step.id]
        names = sorted({wait.alternative.event for wait in waits})
        earliest = yield from self._earliest(run, names, waits, has_used)
        return None if earliest is None else (resolution(*earliest), earliest[1].id)

    def _earliest(
        self,
        run: Run,
        names: Sequence[str],
        waits: Sequence[Wait],
        has_used: Callable[[str], bool],
    ) -> Task:
        hits: list[tuple[Wait, Event]] = []
        for name in names:
            hit = yield from self._first_match(run, name, waits, has_used)
            if hit is not None:
                hits.append(hit)
        return min(hits, key=lambda pair: pair[1].received_at, default=None)

    def _first_match(
        self, run: Run, name: str, waits: Sequence[Wait], has_used: Callable[[str], bool]
    ) -> Task:
        engine = self._engine
        events = read(engine.disk.store.unused_events(run.id, name, run.began_at, "", _MANY))
        yield engine.stale()
        return first_hit(events, waits, has_used)

    def settle_once_written(self, event_id: str, ticket: Future) -> None:
        """Match an event that is written together with a run's step."""
        self._unsettled.add(event_id)
        self._engine.spawn(self._settle_kept(event_id, ticket))

    def _settle_kept(self, event_id: str, ticket: Future) -> Task:
        try:
            yield ticket
        except (RefusedError, StorageError):
            self._unsettled.discard(event_id)
            return
        try:
            yield from self.settle_all()
        except StorageError:
            self._engine.recovery.settle_soon()
        self._unsettled.discard(event_id)

    def settle_all(self) -> Task:
        """Match every event that is kept and not settled."""
        for event in read(self._engine.disk.store.unsettled_events(_MANY)):
            self._unsettled.add(event.id)
            try:
                yield from self._match(event)
            finally:
                self._unsettled.discard(event.id)

    def _settle(self, event: Event, resolved: Sequence[tuple[Run, Future]]) -> Task:
        try:
            yield from self._announce(resolved)
            yield from self._match(event)
        except StorageError:
            self._engine.recovery.settle_soon()
        self._unsettled.discard(event.id)

    def _match(self, event: Event) -> Task:
        engine = self._engine
        while True:
            found = hits(event, read(engine.disk.store.arrival(event)).matches)
            yield engine.stale()
            if not found:
                break
            resolved = self._resolve_idle(event, found)
            lives = self._offer_live(event, found)
            yield from self._announce(resolved)
            is_leaving = self._is_leaving(found)
            if not resolved and not lives and not is_leaving:
                break
            for live in lives:
                yield from live.written()
            yield _PAUSE if lives or is_leaving else 0
        yield engine.disk.submit(Change((EventSettled(event.id),), is_relaxed=True))

    def _is_leaving(self, found: Sequence[Match]) -> bool:
        engine = self._engine
        return any(
            match.run.status is Status.RUNNING
            and match.run.id not in engine.live
            and not engine.recovery.will_rescue(match.run.id)
            for match in found
        )

    def _resolve_idle(self, event: Event, found: list[Match]) -> list[tuple[Run, Future]]:
        engine = self._engine
        resolved: list[tuple[Run, Future]] = []
        for _, group in groupby(found, key=lambda match: match.run.id):
            of_run = [*group]
            run = of_run[0].run
            if run.status not in (Status.WAITING, Status.READY) or run.id in engine.live:
                continue
            now = engine.clock.now()
            run, change = resolve_all(run, resolutions(event, of_run), now, engine.policy)
            resolved.append((run, engine.disk.submit(change)))
        return resolved

    def _offer_live(self, event: Event, found: Sequence[Match]) -> list[Live]:
        lives: list[Live] = []
        for match in found:
            live = self._engine.live.get(match.run.id)
            if live is not None and not live.has_failed:
                value = resolution(match.wait, event)
                live.offer(match.step.id.hash, value, event.id, was_open(match, event))
                lives.append(live)
        return lives

    def _announce(self, resolved: Iterable[tuple[Run, Future]]) -> Task:
        for run, ticket in resolved:
            try:
                yield ticket
            except RefusedError:
                continue
            self._engine.announce(run, None, None)


class Signals:
    """Gives each signal to the one run that waits for it now."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sending: set[object] = set()

    def catch_up(self) -> Task:
        """Every signal that was sent until now has been taken, or not."""
        waiting = set(self._sending)
        while waiting & self._sending:
            yield _PAUSE

    def send(self, name: str, data: bytes) -> Future:
        """What this returns says whether a run has the signal, once that is on disk."""
        answer, token = Future(), object()
        self._sending.add(token)
        self._engine.spawn(self._send(name, data, self._engine.clock.now(), answer, token))
        return answer

    def _send(self, name: str, data: bytes, now: int, answer: Future, token: object) -> Task:
        try:
            while True:
                event = Event("", SIGNAL + name, data, now, now)
                found = read(self._engine.disk.store.arrival(event)).matches
                yield self._engine.stale()
                waiter = next((match for match in found if match.wait.deadline > now), None)
                if waiter is None:
                    answer.set(False)
                    break
                if (yield from self._resolve(waiter, data)):
                    answer.set(True)
                    break
        except StorageError as error:
            answer.set(None, error)
        self._sending.discard(token)

    def _resolve(self, waiter: Match, value: bytes) -> Task:
        engine, run = self._engine, waiter.run
        live = engine.live.get(run.id)
        if live is not None:
            step = live.awaited(waiter.step.id.hash)
            if step is not None:
                live.resolve(step, value)
                try:
                    yield live.acknowledge()
                    return True
                except LostRunError:
                    return False
            yield from live.written()
            if live.has_failed:
                raise StorageError(f"run {run.id}, which waits for it, could not be written")
        elif run.status is not Status.RUNNING:
            decision = decide(run, Resolve(waiter.step, value), engine.clock.now(), engine.policy)
            try:
                yield engine.disk.submit(decision.change)
            except RefusedError:
                return False
            engine.announce(decision.run, None, None)
            return True
        elif engine.recovery.will_rescue(run.id):
            raise StorageError(f"run {run.id}, which waits for it, could not be written")
        yield _PAUSE
        return False
