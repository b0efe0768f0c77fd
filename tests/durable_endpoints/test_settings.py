"""Settings: keyword arguments before the environment, ours before Inngest's, mistakes by name."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from durable_endpoints import DurableEndpointsMiddleware, endpoint, step
from durable_endpoints.errors import ConfigurationError
from durable_endpoints.settings import Settings, SettingsArguments, variable_of
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import one

KEY = "0123456789abcdef"


def load(environ: dict[str, str] | None = None, **given: Any) -> Settings:
    return Settings.load(given, environ or {})


# Where a value comes from

EXAMPLES: dict[str, tuple[Any, Any, str, Any]] = {
    # name: (by keyword, what that is, in the environment, what that is)
    "database": ("a.db", "a.db", "b.db", "b.db"),
    "signing_key": (KEY + "1", KEY + "1", KEY + "2", KEY + "2"),
    "signing_key_fallback": (KEY + "1", KEY + "1", KEY + "2", KEY + "2"),
    "sealing_key": (KEY + "1", KEY + "1", KEY + "2", KEY + "2"),
    "sealing_key_fallback": (KEY + "1", KEY + "1", KEY + "2", KEY + "2"),
    "event_key": ("a", "a", "b", "b"),
    "app_name": ("orders", "orders", "my-app.2", "my-app.2"),
    "server_url": ("http://a:1/", "http://a:1", "https://b/p", "https://b/p"),
    "server_timeout": ("1s", 1_000, "PT2S", 2_000),
    "public_url": ("https://a.example/", "https://a.example", "http://b/p/", "http://b/p"),
    "synchronous": ("normal", "normal", "normal", "normal"),
    "retry_base": (0.25, 250, "250ms", 250),
    "retry_factor": (1.5, 1.5, "3", 3.0),
    "retry_cap": (timedelta(minutes=1), 60_000, "PT5M", 300_000),
    "max_steps": (5, 5, "7", 7),
    "max_result": (5, 5, "7", 7),
    "max_memo": (5, 5, "7", 7),
    "max_stream": (5, 5, "7", 7),
    "max_request_body": (5, 5, "7", 7),
    "max_response_body": (5, 5, "7", 7),
    "max_executions": (5, 5, "7", 7),
    "retention": ("2d", 172_800_000, "1w", 604_800_000),
    "event_retention": ("1h30m", 5_400_000, "90s", 90_000),
    "drain_timeout": (2, 2_000, "500ms", 500),
    "heartbeat": ("5s", 5_000, "500ms", 500),
    "cors_origins": (
        ["https://a"],
        ("https://a",),
        "https://a, https://b",
        ("https://a", "https://b"),
    ),
    "track_all_endpoints": (True, True, "yes", True),
    "version": ("1.0", "1.0", "2.0", "2.0"),
}


def test_there_is_an_example_of_every_setting() -> None:
    names = {field.name for field in fields(Settings)}
    assert names == set(EXAMPLES)
    assert set(get_type_hints(SettingsArguments)) == names  # and a keyword argument


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_keyword_comes_before_the_environment_and_that_before_the_default(name: str) -> None:
    keyword, as_keyword, text, as_text = EXAMPLES[name]
    environ = {variable_of(name): text}
    assert getattr(load(environ, **{name: keyword}), name) == as_keyword
    assert getattr(load(environ), name) == as_text
    assert getattr(load(environ, **{name: None}), name) == as_text
    assert getattr(load(), name) == getattr(Settings(), name)


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_a_blank_variable_is_none(blank: str) -> None:
    environ = {variable_of(name): blank for name in EXAMPLES}
    assert load(environ) == Settings()


def test_blanks_around_a_variable_do_not_count() -> None:
    assert load({"DURABLE_ENDPOINTS_MAX_STEPS": " 7 \n"}).max_steps == 7


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("TRUE", True), ("on", True), ("0", False), ("No", False), ("off", False)],
)
def test_a_flag_in_the_environment(text: str, value: bool) -> None:
    assert load({"DURABLE_ENDPOINTS_TRACK_ALL_ENDPOINTS": text}).track_all_endpoints is value


def test_false_by_keyword_beats_the_environment() -> None:
    environ = {"DURABLE_ENDPOINTS_TRACK_ALL_ENDPOINTS": "1"}
    assert load(environ, track_all_endpoints=False).track_all_endpoints is False


# Inngest's names


@pytest.mark.parametrize("suffix", ["", "_FALLBACK"])
def test_inngests_keys_are_the_second_choice(suffix: str) -> None:
    name = f"signing_key{suffix.lower()}"
    theirs = {f"INNGEST_SIGNING_KEY{suffix}": "signkey-prod-0123456789"}
    assert getattr(load(theirs), name) == "signkey-prod-0123456789"
    both = {**theirs, f"DURABLE_ENDPOINTS_SIGNING_KEY{suffix}": KEY}
    assert getattr(load(both), name) == KEY
    assert getattr(load(both, **{name: KEY + "9"}), name) == KEY + "9"


@pytest.mark.parametrize("value", ["1", "true", "0", ""])
def test_inngests_dev_mode_is_no_server(value: str) -> None:
    """Only a URL ever selects a remote engine."""
    assert load({"INNGEST_DEV": value}).server_url is None


@pytest.mark.parametrize(
    "environ",
    [
        {"INNGEST_DEV": "http://127.0.0.1:8288"},
        {"INNGEST_BASE_URL": "http://127.0.0.1:8288"},
        {"INNGEST_API_BASE_URL": "http://127.0.0.1:8288"},
        {"DURABLE_ENDPOINTS_SERVER_URL": "http://127.0.0.1:8288"},
    ],
    ids=lambda environ: next(iter(environ)),
)
def test_a_url_of_inngests_names_the_server_too(environ: dict[str, str]) -> None:
    assert load(environ).server_url == "http://127.0.0.1:8288"
    ours = {**environ, "DURABLE_ENDPOINTS_SERVER_URL": "http://127.0.0.1:1"}
    assert load(ours).server_url == "http://127.0.0.1:1"


def test_no_other_name_of_inngests_changes_anything() -> None:
    environ = {"INNGEST_ENV": "branch", "INNGEST_SERVE_PATH": "/x", "INNGEST_LOG_LEVEL": "debug"}
    assert load(environ) == Settings()


# Mistakes

MISTAKES: list[tuple[str, Any, str]] = [
    ("database", 5, "give a string"),
    ("signing_key", "short", "at least 16 characters"),
    ("signing_key", 1234567890123456, "give a string"),
    ("sealing_key_fallback", "fifteen letters", "openssl rand -hex 32"),
    ("public_url", "api.example", "http:// or https://"),
    ("public_url", "ftp://api.example", "http:// or https://"),
    ("server_url", "127.0.0.1:8288", "http:// or https://"),
    ("server_url", "http://a:b@c:8288", "without user, password"),
    ("server_url", "http://c:8288/?key=1", "without user, password"),
    ("app_name", "my app", "letters, digits"),
    ("server_timeout", 0, "longer than nothing"),
    ("synchronous", "off", '"full" or "normal"'),
    ("retry_base", "soon", "is not a duration"),
    ("retry_base", "5", "is not a duration"),
    ("retry_base", -1, "not negative"),
    ("retry_base", True, "is not a duration"),
    ("retry_factor", 0.5, "from 1 to 100"),
    ("retry_factor", float("nan"), "from 1 to 100"),
    ("retry_factor", "fast", "give a number from 1 to 100"),
    ("max_steps", 0, "at least 1"),
    ("max_steps", -1, "at least 1"),
    ("max_steps", "none", "give a whole number"),
    ("max_steps", "1e3", "give a whole number"),
    ("max_steps", True, "at least 1"),
    ("max_executions", 0, "at least 1"),
    ("retention", "a week", "is not a duration"),
    ("cors_origins", [5], "give a string"),
    ("track_all_endpoints", "maybe", "true or false"),
    ("version", 1.0, "give a string"),
]


@pytest.mark.parametrize(("name", "value", "message"), MISTAKES)
def test_a_wrong_keyword_is_an_error_that_names_it(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)) as refusal:
        load(**{name: value})
    assert str(refusal.value).startswith(f"{name}=")


@pytest.mark.parametrize(
    ("name", "value", "message"), [mistake for mistake in MISTAKES if isinstance(mistake[1], str)]
)
def test_a_wrong_variable_is_an_error_that_names_it(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)) as refusal:
        load({variable_of(name): value})
    assert str(refusal.value).startswith(f"{variable_of(name)}=")


def test_a_wrong_key_of_inngests_is_named_as_theirs() -> None:
    with pytest.raises(ConfigurationError, match=r"^INNGEST_SIGNING_KEY="):
        load({"INNGEST_SIGNING_KEY": "short"})


# In an application


def test_a_wrong_setting_fails_the_start(tmp_path: Path) -> None:
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, database=str(tmp_path / "runs.db"), max_steps=0)
    with pytest.raises(ConfigurationError, match="max_steps=0"), TestClient(app):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_setting_fails_the_start() -> None:
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, max_stepz=5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_stepz"), TestClient(app):
        pass


def test_a_wrong_variable_fails_every_request_where_no_lifespan_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DURABLE_ENDPOINTS_RETRY_BASE", "soon")
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware)
    with pytest.raises(ConfigurationError, match="DURABLE_ENDPOINTS_RETRY_BASE='soon'"):
        TestClient(app).get("/")


@pytest.mark.anyio
async def test_the_settings_of_retries_reach_the_engine() -> None:
    engine = VirtualEngine(retry_base="10s", retry_factor=3, retry_cap="20s")

    @endpoint
    async def handler(request: Request) -> Response:
        def fail() -> None:
            raise ConnectionError("away")

        await step.run("fail", fail)
        return PlainTextResponse("fine")

    async with engine.client(one(engine, handler)) as client:
        run_id = (await client.get("/")).headers["durable-run-id"]
        for low, high in ((8_000, 12_000), (16_000, 24_000), (16_000, 24_000)):
            (record,) = (await engine.memo(run_id)).values()
            assert record.due is not None
            assert low <= record.due - engine.clock.now() <= high
            await engine.advance((record.due - engine.clock.now()) / 1_000)


@pytest.mark.anyio
async def test_the_version_is_kept_with_a_run(tmp_path: Path) -> None:
    import apsw

    from durable_endpoints.asgi_transport import AppTransport
    from durable_endpoints.engines.embedded import EmbeddedEngine

    @endpoint
    async def handler(request: Request) -> Response:
        return PlainTextResponse("fine")

    database = str(tmp_path / "runs.db")
    engine = EmbeddedEngine(load(database=database))
    await engine.start(for_good=True)
    app = one(engine, handler, version="2026.1")  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=AppTransport(app), base_url="http://a") as client:
        assert (await client.get("/")).text == "fine"
    await engine.stop()
    connection = apsw.Connection(database)
    assert connection.execute("select version from runs").fetchall() == [("2026.1",)]
    connection.close()
