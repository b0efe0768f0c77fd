"""The arrows between the packages, read from the source: who may import whom, and when."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import durable_endpoints
import durable_endpoints_server

SDK = Path(durable_endpoints.__file__).parent
SERVER = Path(durable_endpoints_server.__file__).parent

MAY_IMPORT_THE_SERVER = {"engines/embedded.py"}
"""And the testing kit and the demo, which are drivers of both."""

MIRRORS_THE_CORE = ("engines/remote/", "engines/inngest/")
"""Decide what the server will decide, by the same rules: import the pure core, and no more."""

REACHES_OUTSIDE = {
    "aiofiles",
    "anyio",
    "apsw",
    "asyncio",
    "concurrent",
    "filelock",
    "glob",
    "httpx",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "queue",
    "random",
    "secrets",
    "select",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "ulid",
}


def modules(package: Path, under: str = "") -> list[Path]:
    return sorted((package / under).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The modules that a file imports, and whether at the top, where importing it imports them."""
    tree = ast.parse(path.read_text("utf-8"))
    inside = {
        id(node)
        for late in ast.walk(tree)
        if isinstance(late, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(late, ast.If) and ast.unparse(late.test) == "TYPE_CHECKING")
        for node in ast.walk(late)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            assert node.module is not None
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            yield name, id(node) not in inside


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def ids(path: Path) -> str:
    return str(path.relative_to(SDK.parent))


@pytest.mark.parametrize("path", modules(SDK), ids=ids)
def test_the_sdk_knows_the_server_in_two_places(path: Path) -> None:
    place = path.relative_to(SDK).as_posix()
    if place in MAY_IMPORT_THE_SERVER or place.startswith(("demo/", "testing/")):
        return
    found = [name for name, _ in imports(path) if is_in(name, "durable_endpoints_server")]
    if place.startswith(MIRRORS_THE_CORE):
        found = [name for name in found if not is_in(name, "durable_endpoints_server.engine")]
    assert found == []


@pytest.mark.parametrize("path", modules(SDK), ids=ids)
def test_the_embedded_engine_is_imported_when_it_is_needed(path: Path) -> None:
    """So that a process with a remote engine pays nothing for it."""
    place = path.relative_to(SDK).as_posix()
    if place in MAY_IMPORT_THE_SERVER or place.startswith(("demo/", "testing/")):
        return
    eager = {name for name, at_top in imports(path) if at_top}
    assert not {name for name in eager if is_in(name, "durable_endpoints.engines.embedded")}
    if not place.startswith(MIRRORS_THE_CORE):
        assert not {name for name in eager if is_in(name, "durable_endpoints.engines.remote")}
    assert "durable_endpoints.testing" not in eager


@pytest.mark.parametrize("path", modules(SDK, "protocol"), ids=ids)
def test_the_protocol_is_pure_and_knows_itself_only(path: Path) -> None:
    for name, _ in imports(path):
        if is_in(name, "durable_endpoints"):
            assert is_in(name, "durable_endpoints.protocol"), name
        else:
            assert name.split(".")[0] not in REACHES_OUTSIDE, name


@pytest.mark.parametrize("path", modules(SERVER), ids=ids)
def test_the_server_knows_the_protocol_of_the_sdk_only(path: Path) -> None:
    place = path.relative_to(SERVER).as_posix()
    for name, at_top in imports(path):
        if not is_in(name, "durable_endpoints"):
            continue
        if place == "cli/demo.py" and not at_top and is_in(name, "durable_endpoints.demo"):
            continue  # `durable-endpoints demo` imports it lazily
        assert is_in(name, "durable_endpoints.protocol"), name


@pytest.mark.parametrize("path", modules(SERVER, "engine"), ids=ids)
def test_the_core_reads_no_clock_draws_no_chance_and_opens_nothing(path: Path) -> None:
    for name, _ in imports(path):
        root = name.split(".")[0]
        assert root not in REACHES_OUTSIDE, name
        if is_in(name, "durable_endpoints_server"):
            assert is_in(name, "durable_endpoints_server.engine"), name
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert not {"open", "exec", "eval", "__import__", "input", "print"} & set(calls)


@pytest.mark.parametrize("path", modules(SERVER, "engine"), ids=ids)
def test_the_core_has_no_coroutines(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert not [
        node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]


@pytest.mark.parametrize("path", modules(SERVER, "store"), ids=ids)
def test_a_store_knows_no_service(path: Path) -> None:
    for name, _ in imports(path):
        if is_in(name, "durable_endpoints_server"):
            assert is_in(name, "durable_endpoints_server.store") or is_in(
                name, "durable_endpoints_server.engine"
            ), name


CORE = """
import importlib, json, sys, types
root, before = sys.argv[1], set(sys.modules)
for package in ("durable_endpoints", "durable_endpoints_server"):
    bare = sys.modules[package] = types.ModuleType(package)  # without what its __init__ imports
    bare.__path__ = [f"{root}/{package}"]
for name in sys.argv[2:]:
    importlib.import_module(f"durable_endpoints_server.engine.{name}")
ours = {name for name in sys.modules if name.startswith("durable_endpoints")}
used = {
    f"{name}.{key}": value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    for name in ours
    for key, value in vars(sys.modules[name]).items()
    if isinstance(value, types.ModuleType) or hasattr(value, "__module__")
}
print(json.dumps([used, sorted(set(sys.modules) - before - ours)]))
"""
USED_BY_THE_CORE = {
    *("__future__", "_frozen_importlib", "_frozen_importlib_external", "builtins", "types"),
    *("collections", "enum", "functools", "typing"),
    *("_hashlib", "hashlib", "orjson"),
    *("inspect", "sysconfig"),  # where in the user's code an error was made
}


def test_nothing_that_the_core_imports_reaches_outside() -> None:
    """The same in a real process, and of everything that its modules import in turn."""
    names = [path.stem for path in modules(SERVER, "engine") if path.stem != "__init__"]
    shown = subprocess.run(
        [sys.executable, "-c", CORE, str(SERVER.parent), *names],
        capture_output=True,
        text=True,
        check=True,
    )
    used, foreign = json.loads(shown.stdout)
    outside = {
        place: module
        for place, module in used.items()
        if module
        and not module.startswith("durable_endpoints")
        and module.split(".")[0] not in USED_BY_THE_CORE
    }
    assert outside == {}
    reaching = {
        "random",
        "secrets",
        "socket",
        "select",
        "ssl",
        "subprocess",
        "asyncio",
        "threading",
    }
    assert not {name for name in foreign if name.split(".")[0] in reaching}


def test_importing_the_sdk_imports_neither_the_server_nor_its_store() -> None:
    """The same in a real process, whatever the source says."""
    code = (
        "import sys, durable_endpoints; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('durable_endpoints_server', 'apsw', 'fastapi', 'click', 'uvicorn')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_command_line_imports_no_web_framework() -> None:
    code = (
        "import sys, durable_endpoints_server.cli; "
        "print([m for m in sys.modules if m.split('.')[0] in ('fastapi', 'uvicorn')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_every_module_says_what_it_is_for() -> None:
    for path in [*modules(SDK), *modules(SERVER)]:
        text = path.read_text("utf-8")
        docstring = ast.get_docstring(ast.parse(text))
        assert docstring or not text.strip(), f"{path} has no docstring"
