"""Settings of a server: where they come from, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from durable_endpoints import settings as application
from durable_endpoints.protocol.errors import ConfigurationError
from durable_endpoints.settings import variable_of
from durable_endpoints_server.settings import SETTINGS, ServerSettings

KEY = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"


def load(
    given: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    file: Path | None = None,
    dev: bool = False,
) -> ServerSettings:
    keyed = {"DURABLE_ENDPOINTS_SIGNING_KEY": KEY, **(environ or {})}
    return ServerSettings.load(dev, given or {}, keyed, file)


def test_a_flag_comes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "durable.toml"
    file.write_text('port = 1\nlease = "1m"\nretention = "1d"\napp_origins = ["http://a:80"]\n')
    environ = {"DURABLE_ENDPOINTS_PORT": "2", "DURABLE_ENDPOINTS_LEASE": "2m"}
    settings = load({"port": "3", "lease": None}, environ, file)
    assert (settings.port, settings.lease, settings.retention) == (3, 120_000, 86_400_000)
    assert settings.app_origins == ("http://a",)
    assert settings.heartbeat == 20_000  # as a part of the lease
    assert load().heartbeat == 5_000


def test_keys_come_in_several_from_every_source(tmp_path: Path) -> None:
    file = tmp_path / "durable.toml"
    file.write_text(f'signing_keys = ["{KEY}", "{OTHER}"]\nevent_keys = "{OTHER}"\n')
    from_file = ServerSettings.load(False, {}, {}, file)
    assert (from_file.signing_keys, from_file.event_keys) == ((KEY, OTHER), (OTHER,))
    assert load({"signing_keys": (OTHER, KEY)}).signing_keys == (OTHER, KEY)
    fallback = {"DURABLE_ENDPOINTS_SIGNING_KEY_FALLBACK": OTHER}
    assert load(environ=fallback).signing_keys == (KEY, OTHER)
    both = {"DURABLE_ENDPOINTS_SIGNING_KEY": f"{OTHER},{KEY}"}
    assert load(environ=both).signing_keys == (OTHER, KEY)
    inngest = {"INNGEST_SIGNING_KEY": KEY, "INNGEST_SIGNING_KEY_FALLBACK": OTHER}
    assert ServerSettings.load(False, {}, inngest).signing_keys == (KEY, OTHER)


def test_production_needs_a_key_and_says_how_to_make_one() -> None:
    with pytest.raises(ConfigurationError, match="openssl rand -hex 32") as caught:
        ServerSettings.load(False, {}, {})
    assert "export DURABLE_ENDPOINTS_SIGNING_KEY=" in caught.value.explanation
    assert "durable-endpoints dev" in caught.value.explanation


def test_development_has_no_keys_and_short_pauses() -> None:
    settings = load(dev=True)
    assert (settings.signing_keys, settings.retry_interval) == ((), 1_000)
    assert load({"retry_interval": "2"}, dev=True).retry_interval == 2_000


def test_a_variable_with_a_typing_error_is_named(caplog: pytest.LogCaptureFixture) -> None:
    own = {setting.name for setting in SETTINGS}
    load(environ={variable_of(name): KEY for name in application.SETTINGS if name not in own})
    assert not caplog.records  # an application's are no mistakes
    load(environ={"DURABLE_ENDPOINTS_APP_ORIGINS": "https://shop.example.com"})
    assert "did you mean DURABLE_ENDPOINTS_APP_ORIGIN?" in caplog.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1", "app.localhost"])
def test_development_listens_on_this_machine(host: str) -> None:
    assert load({"host": host}, dev=True).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "127.0.0.1.evil.io"])
def test_development_refuses_to_listen_for_others(host: str) -> None:
    with pytest.raises(ConfigurationError, match="durable-endpoints serve"):
        load({"host": host}, dev=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": "70000"}, "--port='70000': give a number from 0 to 65535"),
        ({"lease": "soon"}, "--lease='soon': .*30s"),
        ({"lease": "0s"}, "--lease='0s': give a duration longer than nothing"),
        ({"max_steps": "0"}, "--max-steps='0': give a whole number of at least 1"),
        ({"log_format": "xml"}, "--log-format='xml': give text or json"),
        ({"synchronous": "off"}, "--synchronous='off': give"),
        ({"app_origins": ("http://a/x",)}, "--app-origin=.*: give scheme, host and port only"),
        ({"app_origins": ("http://u:p@a",)}, "--app-origin=.*: give scheme, host and port only"),
        ({"app_origins": ("a:80",)}, "--app-origin=.*begins with http"),
        ({"app_origins": ("http://a:port",)}, "--app-origin=.*"),
        ({"signing_keys": ("short",)}, "--signing-key=…: a key needs at least 16 characters"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(given)
    assert "short'" not in caught.value.explanation


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigurationError, match="DURABLE_ENDPOINTS_RETENTION='long': "):
        load(environ={"DURABLE_ENDPOINTS_RETENTION": "long"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leese = 1", "unknown setting leese: did you mean lease?"),
        ("colour = 1", "unknown setting colour: there are host, port"),
        ("lease = ", "is not TOML"),
        ("lease = []", "durable.toml: lease="),
        ("host = 5", "durable.toml: host=5: give a string"),
        ("app_origins = 5", "durable.toml: app_origins=5: give a string, or a list"),
        ("access_log = 5", "durable.toml: access_log=5: give true or false"),
        ("\x00", "is not TOML"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_right(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "durable.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load(file=file)
    assert message in caught.value.explanation


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml cannot be read: No such file"):
        load(file=tmp_path / "none.toml")


def test_keys_in_a_file_that_others_may_read_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "durable.toml"
    file.write_text(f'signing_keys = "{KEY}"\n')
    file.chmod(0o600)
    assert KEY not in repr(ServerSettings.load(False, {}, {}, file))
    assert caplog.messages == []
    file.chmod(0o644)
    ServerSettings.load(False, {}, {}, file)
    assert [f"chmod 600 {file}" in message for message in caplog.messages] == [True]


def test_every_setting_is_in_the_documentation() -> None:
    page = Path(__file__).parents[2] / "docs" / "server.md"
    documented = page.read_text("utf-8").partition("## Settings")[2]
    assert [one.name for one in SETTINGS if f"`{one.name}`" not in documented] == []
