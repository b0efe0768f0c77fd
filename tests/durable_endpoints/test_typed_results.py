"""What a step's function says it returns, its await yields: the first time, and in replays."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import pytest
from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from durable_endpoints import StepValueError, endpoint, remember, step
from durable_endpoints.results import codec_for
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import fast, one

if TYPE_CHECKING:
    from decimal import Context as OnlyForCheckers

pytestmark = pytest.mark.anyio
T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    NESTED = (1, 2)


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    YES = "yes"


class Item(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True)

    name: str = Field(alias="itemName", serialization_alias="item-name")
    price: Decimal
    when: datetime


class Animal(BaseModel):
    name: str


class Dog(Animal):
    breed: str = "mixed"


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: int | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    raw: bytes
    tags: frozenset[str] = frozenset()
    inner: Point | None = None


class Row(NamedTuple):
    id: UUID
    seen: date


class Flat(TypedDict):
    title: str


class Timed(TypedDict, total=False):
    at: datetime


NOW = datetime(2026, 5, 4, 3, 2, 1, 987654, tzinfo=timezone(timedelta(hours=2)))
AN_ID = UUID("0190b5e4-0000-7000-8000-000000000000")


def f_model() -> Item:
    return Item.model_validate(
        {"name": "nail", "price": Decimal("1.10"), "when": NOW, "colour": "grey"}
    )


def f_models() -> list[Item]:
    return [f_model(), f_model()]


def f_by_key() -> dict[int, Mapping[str, Item]]:
    return {1: {"a": f_model()}}


def f_page() -> Page[Dog]:
    return Page[Dog](items=[Dog(name="Rex")])


def f_dataclass() -> Point:
    return Point(float("inf"), b"\xff\x00", frozenset("ab"), Point(1.5, b""))


def f_named_tuple() -> Row:
    return Row(AN_ID, date(2026, 1, 1))


def f_typed_dict() -> Timed:
    return {"at": NOW}


def f_flat() -> Flat:
    return {"title": "t"}


def f_scalars() -> tuple[datetime, date, time, timedelta, UUID, Decimal, bytes, IPv4Address]:
    return (
        NOW.astimezone(UTC).replace(tzinfo=None),
        NOW.date(),
        NOW.time(),
        timedelta(days=-1, microseconds=5),
        AN_ID,
        Decimal("0.1000"),
        bytes(range(256)),
        IPv4Address("127.0.0.1"),
    )


def f_enums() -> list[Colour | Level | Word | None]:
    return [Colour.RED, Level.LOW, Word.YES, None]


def f_nested_enum() -> Colour:
    return Colour.NESTED


def f_sets() -> set[tuple[int, ...]]:
    return {(1, 2), (3,)}


def f_union() -> int | str | datetime | None:
    return "2026-01-01T00:00:00Z"


def f_path() -> PurePosixPath:
    return PurePosixPath("/srv/a")


def f_annotated() -> Annotated[list[Literal["a", "b"]], "note"]:
    return ["a", "b"]


def f_sequence() -> Sequence[Point]:
    return [Point(1, b"a")]


async def f_async() -> Row:
    return f_named_tuple()


def f_coroutine() -> Awaitable[Row]:
    return f_async()


class Callables:
    def method(self) -> Row:
        return f_named_tuple()

    def __call__(self) -> Row:
        return f_named_tuple()


def f_partial(value: T, wrap: Callable[[T], Any] = str) -> Dog:
    return Dog(name=wrap(value))


@functools.lru_cache
def f_cached() -> Point:
    return Point(1, b"")


def from_elsewhere(function: Callable[[], T]) -> Callable[[], T]:
    """A decorator of another module, which does not know the names of this one."""
    made: dict[str, Any] = {}
    exec("def wrapper(*args): return function(*args)", {"function": function}, made)
    return functools.wraps(function)(made["wrapper"])


@from_elsewhere
def f_decorated() -> Row:
    return f_named_tuple()


ALL: list[Callable[[], Any]] = [
    f_model,
    f_models,
    f_by_key,
    f_page,
    f_dataclass,
    f_named_tuple,
    f_typed_dict,
    f_flat,
    f_scalars,
    f_enums,
    f_sets,
    f_union,
    f_path,
    f_annotated,
    f_sequence,
    f_async,
    f_coroutine,
    Callables().method,
    Callables(),
    functools.partial(f_partial, "Rex"),
    f_cached,
    f_decorated,
    functools.partial(Dog, name="Rex"),
    functools.partial(Dog.model_validate, {"name": "Rex"}),
    Dog(name="Rex").model_copy,
]


async def passes(engine: VirtualEngine, body: Callable[..., Any], sync: bool = False) -> list[Any]:
    """What the step's await yields in the first execution, and in the one after a sleep."""
    seen: list[Any] = []

    async def handler(request: Request) -> Response:
        seen.append(await step.run("s", body))
        await step.sleep("z", "1h")
        return JSONResponse("done")

    def plain(request: Request) -> Response:
        seen.append(step.sync.run("s", body))
        step.sync.sleep("z", "1h")
        return JSONResponse("done")

    app = one(engine, endpoint(plain if sync else handler))
    async with engine.client(app) as client:
        assert (await client.post("/")).status_code == 303
        await engine.advance("1h")
    assert len(seen) == 2
    return seen


@pytest.mark.parametrize("body", ALL, ids=lambda body: getattr(body, "__name__", "callable"))
async def test_a_result_is_what_the_annotation_says_in_both_passes(
    engine: VirtualEngine, body: Callable[[], Any]
) -> None:
    expected = body()
    if hasattr(expected, "__await__"):
        expected = await expected
    for value in await passes(engine, body):
        assert value == expected
        assert type(value) is type(expected)


async def test_a_plain_handler_gets_the_same(engine: VirtualEngine) -> None:
    assert await passes(engine, f_named_tuple, sync=True) == [f_named_tuple()] * 2


async def test_a_type_may_be_defined_inside_the_handler(engine: VirtualEngine) -> None:
    seen: list[Any] = []

    async def handler(request: Request) -> Response:
        class Local(BaseModel):
            x: int

        def make() -> Local:
            return Local(x=len(seen))

        seen.append(type(await step.run("s", make)) is Local)
        await step.sleep("z", "1h")
        return JSONResponse("done")

    async with engine.client(one(engine, endpoint(handler))) as client:
        await client.post("/")
        await engine.advance("1h")
    assert seen == [True, True]


async def test_the_type_of_a_remembered_dependency_may_be_defined_below_it(
    engine: VirtualEngine,
) -> None:
    seen: list[Any] = []
    app = fast(engine)

    @app.get("/")
    @endpoint
    async def handler(later: Annotated[Any, Depends(_later)]) -> str:
        seen.append(later)
        await step.sleep("z", "1h")
        return "done"

    async with engine.client(app) as client:
        await client.get("/")
        await engine.advance("1h")
    assert seen == [Later(1)] * 2
    assert type(seen[1]) is Later


@remember
def _later() -> Later:
    return Later(1)


class Later(NamedTuple):
    x: int


async def test_a_remembered_dependency_keeps_its_type(engine: VirtualEngine) -> None:
    def user(request: Request) -> Dog:
        return Dog(name=request.headers["name"])

    remembered = remember(user)
    seen: list[Dog] = []

    async def handler(request: Request) -> Response:
        await step.sleep("z", "1h")
        return JSONResponse("done")

    app = one(engine, endpoint(handler))
    inner = app.router.routes[0].app  # type: ignore[attr-defined]

    async def before(scope: Any, receive: Any, send: Any) -> None:
        seen.append(remembered(Request(scope)))
        await inner(scope, receive, send)

    app.router.routes[0].app = before  # type: ignore[attr-defined]
    async with engine.client(app) as client:
        await client.post("/", headers={"name": "Rex"})
        await engine.advance("1h")
    assert seen == [Dog(name="Rex")] * 2


def b_set() -> Any:
    return {"a": [1, {2}]}


def b_unannotated():  # type: ignore[no-untyped-def]
    return Dog(name="Rex")


def b_subclass() -> list[Animal]:
    return [Dog(name="Rex")]


def b_other_type() -> Dog:
    return {"name": "Rex"}  # type: ignore[return-value]


def b_none() -> Dog:
    return None  # type: ignore[return-value]


class WithSecret(BaseModel):
    inner: list[SecretStr]


def b_secret() -> WithSecret:
    return WithSecret(inner=[SecretStr("hush")])


class Excluding(BaseModel):
    kept: int
    dropped: int | None = Field(default=None, exclude=True)


def b_excluded() -> dict[str, Excluding]:
    return {"a": Excluding(kept=1, dropped=2)}


class Nan(BaseModel):
    x: float


def b_nan() -> Nan:
    return Nan(x=float("nan"))


class Raw(BaseModel):
    parts: dict[str, bytes]


def b_bytes() -> Raw:
    return Raw(parts={"a": b"ok", "b": b"\xff"})


def b_any_inside() -> tuple[Any, ...]:
    return (1, [NOW])


def b_wrong_inside() -> list[Point]:
    return [Point("far", b"")]  # type: ignore[arg-type]


def b_wrong_field() -> Point:
    return Point("far", b"")  # type: ignore[arg-type]


def b_only_for_checkers() -> OnlyForCheckers:
    return NOW  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("body", "place", "advice"),
    [
        (b_set, "$.a[1]", "use a list"),
        (b_unannotated, "$", "say in the function's annotation what it returns"),
        (b_subclass, "$[0]", "a Dog would come back as an Animal"),
        (b_other_type, "$", "a dict, where the function is annotated to return Dog"),
        (b_none, "$", "None, where the function is annotated to return Dog"),
        (b_secret, "$.inner[0]", "would come back as SecretStr('**********')"),
        (b_excluded, "$.a.dropped", "an int would come back as a NoneType"),
        (b_nan, "$.x", "no valid Nan any more"),
        (b_bytes, "$.parts.b", 'ser_json_bytes="base64"'),
        (b_any_inside, "$[1][0]", "a datetime would come back as a str"),
        (b_wrong_field, "$.x", "does not fit its annotation (Input should be a valid number"),
        (b_wrong_inside, "$[0].x", "does not fit its annotation (Input should be a valid number"),
        (f_nested_enum, "$", "no valid Colour any more"),
        (b_only_for_checkers, "$", "import what it names at run time"),
    ],
)
async def test_what_cannot_be_kept_is_an_error_that_names_step_and_place(
    engine: VirtualEngine, body: Callable[[], Any], place: str, advice: str
) -> None:
    with pytest.raises(StepValueError) as caught:
        await _first(engine, body)
    assert "the result of step 's' cannot be kept" in str(caught.value)
    assert f"at {place}: " in str(caught.value)
    assert advice in str(caught.value)


async def _first(engine: VirtualEngine, body: Callable[..., Any]) -> None:
    raised: list[Exception] = []

    async def handler(request: Request) -> Response:
        try:
            await step.run("s", body)
        except Exception as error:
            raised.append(error)
        return JSONResponse("done")

    async with engine.client(one(engine, endpoint(handler))) as client:
        await client.post("/")
    for error in raised:
        raise error


@pytest.mark.parametrize("sync", [False, True])
async def test_a_result_that_cannot_be_kept_does_not_run_the_body_again(
    engine: VirtualEngine, sync: bool
) -> None:
    runs: list[int] = []
    caught: list[str] = []

    def body() -> Any:
        runs.append(1)
        return {1, 2}

    async def handler(request: Request) -> Response:
        try:
            await step.run("s", body)
        except StepValueError as error:
            caught.append(str(error).partition("\n")[0])
        await step.sleep("z", "1h")
        return JSONResponse("done")

    def plain(request: Request) -> Response:
        try:
            step.sync.run("s", body)
        except StepValueError as error:
            caught.append(str(error).partition("\n")[0])
        step.sync.sleep("z", "1h")
        return JSONResponse("done")

    async with engine.client(one(engine, endpoint(plain if sync else handler))) as client:
        await client.post("/")
        await engine.advance("1h")
    assert len(runs) == 1
    assert len(caught) == 2
    assert caught[0] == caught[1]


class Thing:
    pass


@pytest.mark.parametrize(
    "annotation", [Thing, list[Thing], Request], ids=["own", "list", "request"]
)
async def test_a_type_that_nothing_can_keep_is_refused_before_the_body_runs(
    engine: VirtualEngine, annotation: Any
) -> None:
    ran: list[int] = []

    def body() -> Any:
        ran.append(1)

    body.__annotations__["return"] = annotation
    with pytest.raises(StepValueError, match=r"cannot be kept.*Return its data instead"):
        await _first(engine, body)
    assert not ran


async def test_a_type_that_has_changed_since_says_what_does_not_fit(engine: VirtualEngine) -> None:
    class Old(BaseModel):
        name: str

    class New(BaseModel):
        name: str
        size: int

    def old() -> Old:
        return Old(name="a")

    def new() -> New:
        return New(name="a", size=1)

    old.__annotations__["return"], new.__annotations__["return"] = Old, New
    bodies = [old, new]
    caught: list[str] = []

    async def handler(request: Request) -> Response:
        try:
            await step.run("s", bodies.pop(0))
        except StepValueError as error:
            caught.append(str(error))
        await step.sleep("z", "1h")
        return JSONResponse("done")

    async with engine.client(one(engine, endpoint(handler))) as client:
        await client.post("/")
        await engine.advance("1h")
    assert "what is remembered of step 's' does not fit" in caught[0]
    assert "at $.size: Field required" in caught[0]


def test_typed_dicts_of_typing_are_taken_wherever_they_stand() -> None:
    kinds: list[Any] = [
        Timed,
        list[Timed],
        dict[str, Timed | None],
        tuple[Timed, ...],
        Annotated[list[Timed], 1],
    ]
    for kind in kinds:
        codec = codec_for(kind)
        assert not isinstance(codec, str), codec


@pytest.mark.skipif(sys.version_info < (3, 12), reason="`type` statements came with 3.12")
def test_an_alias_with_parameters_stands_for_what_it_is_given() -> None:
    made: dict[str, Any] = {}
    exec("type ByName[X] = dict[str, X]", made)
    codec = codec_for(made["ByName"][datetime])
    assert not isinstance(codec, str), codec
    assert codec.decode(codec.encode({"a": NOW})[0]) == {"a": NOW}
    assert codec_for(made["ByName"][int]) is codec_for(dict[str, int])
