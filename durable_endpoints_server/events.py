"""Events: received once, matched with every open wait, and kept for waits that open later.

No order of arrival loses one. An event looks for open waits before it is written (so that what it
resolves is in the same commit) and once more afterwards; a wait looks back for kept events once it
is on disk. Whichever of the two is written last, sees the other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from durable_endpoints.protocol.errors import StorageError
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
from durable_endpoints_server.engine.transitions import resolve_all
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.store.base import Entry, RefusedError, Ticket, is_written

if TYPE_CHECKING:
    from durable_endpoints_server.host import Host

logger = logging.getLogger("durable_endpoints")
_PAGE = 500
_PATIENCE = 60.0
"""Seconds to wait for a run whose execution is gone to be idle in the store."""
_SECOND_LOOK = 0.01
"""Seconds for which runs that an event has woken go first, before waits are looked for that were
just being opened when it came."""
_PAUSE = 0.01
"""Seconds before an event is matched again with a wait that was just being changed."""
_FEW_RUNS = 8
"""Runs that one event wakes and that are claimed at once. More of them have their turns."""
_NONE: Mapping[str, Entry] = MappingProxyType({})


class _Resolved(NamedTuple):
    """A run that nobody executes, of which an event has resolved something."""

    run: Run
    ticket: Ticket
    is_claimed: bool
    """Whether it is executed once that is on disk; else somebody has to be told."""


class EventService:
    """Receives events, and resolves waits with them."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._unsettled: set[str] = set()
        self._publishing: dict[str, asyncio.Task[bool]] = {}
        self.read_inbox: Callable[[], Awaitable[None]] | None = None
        """Set by the inbox: takes in the events that other processes left."""

    @property
    def is_busy(self) -> bool:
        """Whether some event is still being matched."""
        return bool(self._unsettled)

    async def publish(self, new: NewEvent, received_at: int | None = None) -> str:
        """Receive an event, and return its id once it is on disk.

        An id that was received before, within retention, changes nothing. A caller that gives up
        does not take the event with it.
        """
        return await self._host.at_home(self._receive(new, received_at))

    async def _receive(self, new: NewEvent, received_at: int | None) -> str:
        now = received_at if received_at is not None else self._host.clock.now()
        event = Event(new.id, new.name, new.data, new.ts if new.ts is not None else now, now)
        await self._receive_one(event)
        return event.id

    async def _receive_one(self, event: Event) -> bool:
        """Receive one event, and return once it is on disk. Whether it is this call's: its id was
        not received before, and no other call is just receiving it."""
        task = self._publishing.get(event.id)
        if task is not None:
            await asyncio.shield(task)
            return False
        task = self._host.tasks.spawn(self._publish(event), f"receive event {event.id}")
        self._publishing[event.id] = task
        return await asyncio.shield(task)

    async def receive_all(self, events: Sequence[Event]) -> dict[str, str]:
        """Receive events that came together, and return once all are on disk, by one write.

        An id that was received before, within retention, changes nothing: what is returned are the
        internal ids of those. A caller that gives up does not take the events with it.
        """
        return await self._host.at_home(self._receive_all(events))

    async def _receive_all(self, events: Sequence[Event]) -> dict[str, str]:
        if len(events) == 1:  # as most come: what it resolves is in the same write
            is_new = await self._receive_one(events[0])
            return {} if is_new else await self._host.store.known_events([events[0].id])
        receiving = self._host.tasks.spawn(self._receive_many(events), "receive events")
        return await asyncio.shield(receiving)

    async def _receive_many(self, events: Sequence[Event]) -> dict[str, str]:
        store = self._host.store
        # From here on they are received: a wait whose time is over has to wait for them.
        mine = {event.id for event in events} - self._unsettled
        self._unsettled |= mine
        try:
            known = await store.known_events([event.id for event in events])
            new = {event.id: event for event in reversed(events) if event.id not in known}
            facts = [
                EventReceived(event, settled=False, one_of_many=True) for event in new.values()
            ]
            await store.submit(Change(tuple(facts))).wait()
        except BaseException:
            self._unsettled -= mine
            raise
        fresh = [event for event in new.values() if event.id in mine]
        self._host.tasks.spawn(self._settle_many(fresh, mine), f"match {len(fresh)} events")
        return known

    async def _settle_many(self, events: Sequence[Event], unsettled: set[str]) -> None:
        """Resolve what the events match. Of most, nobody waits for: those cost one more write."""
        try:
            awaited = await self._host.store.awaited({event.name for event in events})
            idle = [event.id for event in events if event.name not in awaited]
            if idle:
                settled = Change(tuple(EventSettled(event_id) for event_id in idle))
                await self._host.store.submit(settled).wait()
                self._unsettled.difference_update(idle)
            await self._match_all([event for event in events if event.name in awaited])
        except StorageError as error:
            logger.error("%d events could not be matched yet: %s", len(unsettled), error)
            self._host.recovery.settle_soon()
        finally:
            self._unsettled.difference_update(unsettled)

    async def _publish(self, event: Event) -> bool:
        is_known = event.id in self._unsettled
        self._unsettled.add(event.id)
        is_on_disk = False
        resolved: list[_Resolved] = []
        try:
            arrival = await self._host.store.arrival(event)
            if arrival.known:
                return False
            found = hits(event, arrival.matches)
            entries = await self._entries_of(found)
            received = Change((EventReceived(event, settled=False),))
            ticket = self._host.store.submit(received)
            resolved = self._resolve_idle(event, found, entries)
            await ticket.wait()
            is_on_disk = True
            self._host.tasks.spawn(self._settle(event, resolved), f"match event {event.id}")
            return True
        except RefusedError:
            await self._announce(resolved)  # it was received before
            return False
        finally:
            self._publishing.pop(event.id, None)
            if not is_on_disk and not is_known:
                self._unsettled.discard(event.id)

    async def _entries_of(self, found: Sequence[Match]) -> dict[str, Entry]:
        """What is needed to execute the runs that an event wakes, if those are few: it is read
        before the event is written, so that they are claimed in the same write."""
        waiting = {match.run.id for match in found if match.run.status is Status.WAITING}
        if len(waiting) > _FEW_RUNS:
            return {}
        entries = [await self._host.store.entry(run_id) for run_id in sorted(waiting)]
        return {entry.run.id: entry for entry in entries if entry is not None}

    def restart(self) -> None:
        """Whatever was being matched on an event loop before this one went with it."""
        self._unsettled.clear()
        self._publishing.clear()

    async def catch_up(self) -> None:
        """Return once every event received until now has resolved what it resolves.

        Raises `StorageError` while that cannot be said.
        """
        if self.read_inbox is not None:
            await self.read_inbox()
        recovery, waiting = self._host.recovery, set(self._unsettled)
        # Both at once: an event that fails to be matched is left to the recovery.
        while recovery.is_behind or waiting & self._unsettled:
            if recovery.is_behind and recovery.is_failing:
                raise StorageError("events are on disk that could not be matched yet")
            await asyncio.sleep(_PAUSE)

    async def look_back(self, live: LiveRun, key: str) -> None:
        """Give an open wait of a live run the earliest kept event that it matches."""
        store, run = self._host.store, live.run
        waits = [match.wait for match in await store.waits_of(run.id) if match.step.id.hash == key]
        names = sorted({wait.alternative.event for wait in waits})
        if not names:
            return
        while live.awaited(key) is not None:
            earliest = await self._earliest(run, names, waits, live.has_used)
            if earliest is None:
                return
            # Another wait of this run may have been given it meanwhile: then the next one counts.
            wait, event = earliest
            await live.offer(key, resolution(wait, event), event.id, again=False)

    async def kept_for(
        self, run: Run, step: StepRecord, has_used: Callable[[str], bool]
    ) -> tuple[bytes, str] | None:
        """What an open wait of a run that nobody executes gets of the kept events, and the id of
        that one: an execution that vanished may not have come to look back."""
        found = await self._host.store.waits_of(run.id)
        waits = [match.wait for match in found if match.step.id == step.id]
        names = sorted({wait.alternative.event for wait in waits})
        earliest = await self._earliest(run, names, waits, has_used)
        return None if earliest is None else (resolution(*earliest), earliest[1].id)

    async def _earliest(
        self, run: Run, names: list[str], waits: list[Wait], has_used: Callable[[str], bool]
    ) -> tuple[Wait, Event] | None:
        found = [await self._first_match(run, name, waits, has_used) for name in names]
        return min(filter(None, found), key=lambda pair: pair[1].received_at, default=None)

    async def _first_match(
        self, run: Run, name: str, waits: list[Wait], has_used: Callable[[str], bool]
    ) -> tuple[Wait, Event] | None:
        since, after = run.began_at, ""
        while True:
            events = await self._host.store.unused_events(run.id, name, since, after, _PAGE)
            hit = first_hit(events, waits, has_used)
            if hit is not None or len(events) < _PAGE:
                return hit
            since, after = events[-1].received_at, events[-1].id

    def settle_once_written(self, event_id: str, ticket: Ticket) -> None:
        """Match an event that is written together with a run's step. It was received already: a
        wait whose time is over meanwhile has to wait for it."""
        self._unsettled.add(event_id)
        self._host.spawn_at_home(self._settle_kept(event_id, ticket), f"match event {event_id}")

    async def _settle_kept(self, event_id: str, ticket: Ticket) -> None:
        try:
            if await is_written(ticket):
                await self.settle_all()
        except StorageError as error:
            logger.error("event %s could not be matched yet: %s", event_id, error)
            self._host.recovery.settle_soon()
        finally:
            self._unsettled.discard(event_id)

    async def settle_all(self) -> None:
        """Match every event that is kept and not settled: after a start, or a failed write."""
        while events := await self._host.store.unsettled_events(_PAGE):
            await self._match_all(events)
            if len(events) < _PAGE:
                return

    async def _match_all(self, events: Sequence[Event]) -> None:
        """Match them together, because each waits for commits, which they can share."""
        for start in range(0, len(events), _PAGE):
            matching = [self._match_kept(event) for event in events[start : start + _PAGE]]
            for outcome in await asyncio.gather(*matching, return_exceptions=True):
                if outcome is not None:
                    raise outcome

    async def _match_kept(self, event: Event) -> None:
        self._unsettled.add(event.id)
        try:
            await self._match(event)
        finally:
            self._unsettled.discard(event.id)

    async def _settle(self, event: Event, resolved: Sequence[_Resolved] = ()) -> None:
        """Resolve what the event matches until nothing is left, then say so. `resolved` is on its
        way to the disk already."""
        try:
            await self._announce(resolved)
            await asyncio.sleep(_SECOND_LOOK)
            await self._match(event)
        except StorageError as error:
            logger.error("event %s could not be matched yet: %s", event.id, error)
            self._host.recovery.settle_soon()
        finally:
            self._unsettled.discard(event.id)

    async def _match(self, event: Event) -> None:
        give_up_at = time.monotonic() + _PATIENCE
        while found := hits(event, (await self._host.store.arrival(event)).matches):
            resolved = self._resolve_idle(event, found)
            lives = await self._offer_live(event, found)
            await self._announce(resolved)
            is_leaving = self._is_leaving(found) and time.monotonic() < give_up_at
            if not resolved and not lives and not is_leaving:
                break  # nobody can take it now: whoever can will look back for it
            for live in lives:
                await live.written()
            await asyncio.sleep(_PAUSE if lives or is_leaving else 0)
        # What is lost of this is matched again, and finds nothing more to do.
        await self._host.store.submit(Change((EventSettled(event.id),), is_relaxed=True)).wait()

    def _is_leaving(self, found: list[Match]) -> bool:
        """Whether one of these runs was being executed when the store was asked, and is not any
        more: that it is idle now is only on its way to the disk."""
        host = self._host
        return any(
            match.run.status is Status.RUNNING
            and host.live_run(match.run.id) is None
            and not host.recovery.will_rescue(match.run.id)
            for match in found
        )

    def _resolve_idle(
        self, event: Event, found: list[Match], entries: Mapping[str, Entry] = _NONE
    ) -> list[_Resolved]:
        """Queue the resolutions of runs that nobody executes: all matching waits of each. Those of
        which `entries` tells are claimed, too, if there is room."""
        resolved: list[_Resolved] = []
        for _, group in groupby(found, key=lambda match: match.run.id):
            of_run = [*group]
            run = of_run[0].run
            if run.status not in (Status.WAITING, Status.READY) or self._host.live_run(run.id):
                continue
            now = self._host.clock.now()
            decision = resolve_all(run, resolutions(event, of_run), now, self._host.policy)
            entry, ticket = entries.get(run.id), None
            if entry is not None and entry.run.generation == run.generation:
                ticket = self._host.dispatcher.claim(entry.after(*decision), decision)
            is_claimed = ticket is not None
            if ticket is None:
                ticket = self._host.store.submit(decision.change)
            resolved.append(_Resolved(decision.run, ticket, is_claimed))
        return resolved

    async def _offer_live(self, event: Event, found: list[Match]) -> list[LiveRun]:
        lives: list[LiveRun] = []
        for match in found:
            live = self._host.live_run(match.run.id)
            if live is not None and not live.has_failed:
                value = resolution(match.wait, event)
                again = was_open(match, event)
                await live.offer(match.step.id.hash, value, event.id, again)
                lives.append(live)
        return lives

    async def _announce(self, resolved: Iterable[_Resolved]) -> None:
        for run, ticket, is_claimed in resolved:
            if await is_written(ticket) and not is_claimed:  # else `_settle` looks again
                self._host.announce(run, None, None)
