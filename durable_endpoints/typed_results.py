"""Results of annotated types: by way of pydantic, and checked to come back as what they were.

Bytes are kept in base64 and infinities by name, except where a model configures that itself.
Fields are kept under their own names, not under their aliases.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import sys
import types
import warnings
from collections.abc import Mapping, Sequence, Set
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import pydantic_core
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from typing_extensions import TypeAliasType, TypedDict

from durable_endpoints.protocol.values import NotJsonError, article

_CONFIG = ConfigDict(
    ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings", defer_build=False
)

# Made at run time, which type checkers do not follow.
_new_alias: Any = TypeAliasType
_new_typed_dict: Any = TypedDict


class TypedCodec:
    """Keeps values of one type."""

    def __init__(self, adapter: TypeAdapter[Any], type_: Any, name: str) -> None:
        self._adapter = adapter
        self._class = type_ if isinstance(type_, type) and not is_typeddict(type_) else object
        self._name = name

    def encode(self, value: Any) -> tuple[bytes, Any]:
        """The JSON text of `value`, and what decoding it gives. Raises `NotJsonError` if the type
        does not hold it, or if it would not be the same again."""
        if not isinstance(value, self._class):
            raise self._other_type(value)
        try:
            text = self._adapter.dump_json(value, by_alias=False, round_trip=True, warnings="error")
        except (pydantic_core.PydanticSerializationError, ValueError, RecursionError) as error:
            raise self._not_kept(value, error) from None
        decoded = self._decode(text, value)
        if not _are_equal(decoded, value):
            _compare(value, decoded, "$", 0)
        return text, decoded

    def decode(self, text: bytes) -> Any:
        """What was encoded. Raises `NotJsonError` if it does not fit the type any more."""
        try:
            return self._adapter.validate_json(text, by_alias=False, by_name=True)
        except ValidationError as error:
            raise NotJsonError(*first_problem(error)) from None

    def _decode(self, text: bytes, value: Any) -> Any:
        try:
            return self.decode(text)
        except NotJsonError as error:
            raise NotJsonError(
                error.path,
                f"the value, as JSON, is no valid {self._name} any more ({error.problem})",
            ) from None

    def _not_kept(self, value: Any, error: Exception) -> NotJsonError:
        path, part = _locate(value, "$", 0)
        if isinstance(part, bytes):
            return NotJsonError(
                path,
                "bytes that are not text: give their model "
                'model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")',
            )
        if path == "$":
            return self._unfit_part(value) or self._other_type(value, f" ({_brief(error)})")
        return NotJsonError(path, f"{article(part)} cannot be kept as JSON ({_brief(error)})")

    def _unfit_part(self, value: Any) -> NotJsonError | None:
        """The place inside a value where another type stands than its annotation says, which a
        dataclass does not check. None if there is none, or it is the value itself."""
        try:
            text = self._adapter.dump_json(value, by_alias=False, round_trip=True, warnings=False)
            self._adapter.validate_json(text, by_alias=False, by_name=True)
        except ValidationError as error:
            path, problem = first_problem(error)
            unfit = NotJsonError(path, f"it does not fit its annotation ({problem})")
            return unfit if path != "$" else None
        except Exception:
            pass
        return None

    def _other_type(self, value: Any, detail: str = "") -> NotJsonError:
        given = "None" if value is None else article(value)
        problem = f"{given}, where the function is annotated to return {self._name}"
        advice = "; return one, or annotate what it does return"
        return NotJsonError("$", problem + detail + advice)


def typed_codec(type_: Any, name: str) -> TypedCodec | str:
    """The codec of a type, or why there is none, as in "X, which cannot be kept: …"."""
    try:
        # Under a name of its own, because a type with a configuration takes no other one.
        alias = _new_alias("Result", for_pydantic(type_))
        adapter: TypeAdapter[Any] = TypeAdapter(alias, config=_CONFIG)
    except (PydanticUserError, pydantic_core.SchemaError) as error:
        return f"{name}, which cannot be kept: {_brief(error)}"
    except (NameError, TypeError) as error:
        return f"{name}, which cannot be kept: {type(error).__name__}: {error}"
    return TypedCodec(adapter, type_, name)


def for_pydantic(type_: Any) -> Any:
    """The type as pydantic wants it: before Python 3.12 it takes the `TypedDict` of
    `typing_extensions` only, and most people write that of `typing`."""
    if sys.version_info >= (3, 12):
        return type_
    if is_typeddict(type_):
        hints = get_type_hints(type_, include_extras=True)
        fields = {
            key: (Required if key in type_.__required_keys__ else NotRequired)[for_pydantic(hint)]
            for key, hint in hints.items()
        }
        return _new_typed_dict(type_.__name__, fields)
    arguments = get_args(type_)
    if not arguments or get_origin(type_) is Literal:
        return type_
    if get_origin(type_) is Annotated:
        return Annotated[(for_pydantic(arguments[0]), *arguments[1:])]
    inner = tuple(for_pydantic(argument) for argument in arguments)
    if inner == arguments:
        return type_
    if isinstance(type_, types.UnionType):
        return functools.reduce(operator.or_, inner)
    copy = getattr(type_, "copy_with", None)
    return copy(inner) if copy is not None else get_origin(type_)[inner]


def first_problem(error: ValidationError) -> tuple[str, str]:
    details = error.errors(include_url=False, include_input=False)[0]
    path = "$"
    for step in details["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path, details["msg"]


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = lines[1].strip() if len(lines) > 1 and lines[0].endswith("warnings:") else lines[0]
    text = text.partition(". Set `arbitrary_types_allowed")[0].partition(" Set `arb")[0]
    return text.removesuffix(".")


def _are_equal(decoded: Any, value: Any) -> bool:
    if type(decoded) is not type(value):
        return False
    try:
        return bool(decoded == value)
    except Exception:
        return False


def _compare(value: Any, decoded: Any, path: str, depth: int) -> None:
    """Raise `NotJsonError` at the first place where what came back differs."""
    if depth > 250 or value is decoded:
        return
    if type(decoded) is not type(value):
        raise NotJsonError(
            path,
            f"{article(value)} would come back as {article(decoded)}: the annotation must say "
            "which type stands there",
        )
    if isinstance(value, Set):
        if value != decoded:
            raise _changed(path, value, decoded)
        return
    parts, others = _named(value), dict(_named(decoded))
    for name, part in parts:
        if name not in others:
            raise NotJsonError(
                f"{path}{name}", f"{article(part)} would not come back: its type leaves it out"
            )
        _compare(part, others[name], f"{path}{name}", depth + 1)
    if not parts and not _are_equal(decoded, value) and _compares_by_value(value):
        raise _changed(path, value, decoded)


def _changed(path: str, value: Any, decoded: Any) -> NotJsonError:
    return NotJsonError(path, f"{value!r} would come back as {decoded!r}")


def _compares_by_value(value: Any) -> bool:
    """Whether its type does, and the value equals itself (NaN does not)."""
    return "__eq__" in {name for base in type(value).__mro__[:-1] for name in vars(base)} and bool(
        value == value
    )


def _named(value: Any) -> list[tuple[str, Any]]:
    """What a value consists of, by its place in it."""
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        return [
            (f".{name}", part) for name, part in {**fields, **(value.model_extra or {})}.items()
        ]
    if dataclasses.is_dataclass(value):
        return [
            (f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)
        ]
    if isinstance(value, Mapping):
        return [(f".{key}" if isinstance(key, str) else f"[{key!r}]", value[key]) for key in value]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    return []


def _locate(value: Any, path: str, depth: int) -> tuple[str, Any]:
    """The innermost part of a value that has no JSON form by itself, and its place."""
    for name, part in _named(value) if depth < 250 else ():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                pydantic_core.to_json(part)
        except Exception:
            return _locate(part, f"{path}{name}", depth + 1)
    return path, value
