from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_endpoints.protocol.values import NotJsonError, decode, round_trip

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


@given(json_values)
def test_json_comes_back_as_it_was(value: Any) -> None:
    encoded, decoded = round_trip(value)
    assert decoded == value
    assert type(decoded) is type(value)
    assert decode(encoded) == decoded


def test_a_tuple_comes_back_as_a_list() -> None:
    assert round_trip({"a": (1, (2,))})[1] == {"a": [1, [2]]}


class Colour(Enum):
    RED = "red"


class Word(StrEnum):
    HI = "hi"


@dataclass
class Point:
    x: int


class Special(list[int]):
    pass


deep: list[Any] = []
for _ in range(300):
    deep = [deep]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (float("nan"), "$"),
        ({"a": [1, math.inf]}, "$.a[1]"),
        ({"a": {"b": 2**64}}, "$.a.b"),
        ([-(2**63) - 1], "$[0]"),
        ({1: "x"}, "$"),
        ({"a": {None: 1}}, "$.a"),
        ({"when": datetime(2026, 1, 1)}, "$.when"),
        ([uuid.UUID(int=1)], "$[0]"),
        ({"a": {1, 2}}, "$.a"),
        (b"bytes", "$"),
        (Point(1), "$"),
        ([Special([1])], "$[0]"),
        ([Colour.RED], "$[0]"),
        (Word.HI, "$"),
        ("\ud800", "$"),
        ({"a": ["ok", "\udfff"]}, "$.a[1]"),
        (object(), "$"),
    ],
)
def test_what_json_cannot_hold_is_an_error_with_the_place(value: Any, path: str) -> None:
    with pytest.raises(NotJsonError) as caught:
        round_trip(value)
    assert caught.value.path == path


def test_nesting_without_end_is_an_error() -> None:
    with pytest.raises(NotJsonError):
        round_trip(deep)
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotJsonError):
        round_trip(loop)
