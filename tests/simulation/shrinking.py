"""Make a failing history small enough to read, and still failing.

Whatever a plan is made of, tuples and frozen dataclasses, is taken apart: items are dropped from
tuples, first halves of them and then single ones; numbers and flags go back to nothing. What still
fails is kept, until nothing more can go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tests.simulation.programs import Parallel, Scenario, programs

T = TypeVar("T")

_SIMPLEST: dict[str, object] = {
    "failures": 0,
    "times": 1,
    "takes": 0,
    "copies": 1,
    "at": 0,
    "delay": 0,
    "key": None,
    "reads_stream": False,
    "is_background": False,
    "is_fatal": False,
    "max_runtime": None,
}
"""What makes a thing simpler, by the name of the field."""
_DROPPABLE = ("nodes", "branches", "chunks", "requests", "events", "signals", "cancels", "repeats")


def shrunk(
    plan: T, fails: Callable[[T], bool], smaller: Callable[[T], Iterator[T]], tries: int = 20_000
) -> T:
    """The smallest plan found that `fails`, beginning with one that does, in so many `tries`.
    `smaller` gives simpler plans, the simplest first."""
    while True:
        for candidate in smaller(plan):
            tries -= 1
            if fails(candidate):
                plan = candidate
                break
            if not tries:
                return plan
        else:
            return plan


def smaller_scenarios(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios with less in them. Events and the like for runs that are gone go, too."""
    for candidate in _smaller(scenario):
        labels = programs(candidate)
        yield dataclasses.replace(
            candidate,
            events=tuple(event for event in candidate.events if event.after in labels),
            signals=tuple(given for given in candidate.signals if given.after in labels),
            cancels=tuple(cancel for cancel in candidate.cancels if cancel.label in labels),
        )


def smaller_tuples(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    """Halves first, then without each single item."""
    half = len(items) // 2
    if half:
        yield items[:half]
        yield items[half:]
    for n in range(len(items)):
        yield items[:n] + items[n + 1 :]


def _smaller(thing: Any) -> Iterator[Any]:
    fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    for name, value in fields.items():
        if name in _DROPPABLE:
            for fewer in smaller_tuples(value):
                if fewer or name not in ("branches", "requests"):
                    yield dataclasses.replace(thing, **{name: fewer})
    for name, value in fields.items():
        if name in _SIMPLEST and value != _SIMPLEST[name]:
            yield dataclasses.replace(thing, **{name: _SIMPLEST[name]})
    for name, value in fields.items():
        if dataclasses.is_dataclass(value):
            for simpler in _smaller(value):
                yield dataclasses.replace(thing, **{name: simpler})
        elif isinstance(value, tuple):
            for n, item in enumerate(value):
                for simpler in _smaller_item(item):
                    yield dataclasses.replace(
                        thing, **{name: (*value[:n], simpler, *value[n + 1 :])}
                    )


def _smaller_item(item: Any) -> Iterator[Any]:
    if isinstance(item, Parallel):
        for branch in item.branches:
            yield from branch
    if dataclasses.is_dataclass(item):
        yield from _smaller(item)
    elif isinstance(item, tuple):
        yield from smaller_tuples(item)
        for n, inner in enumerate(item):
            for simpler in _smaller_item(inner):
                yield (*item[:n], simpler, *item[n + 1 :])
