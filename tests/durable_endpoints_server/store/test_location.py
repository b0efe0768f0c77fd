"""Where a database setting points."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable_endpoints.protocol.errors import ConfigurationError
from durable_endpoints_server.store.location import DEFAULT_DATABASE, sqlite_path


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        (DEFAULT_DATABASE, "/work/dir/.durable/endpoints.db"),
        ("sqlite:///runs.db", "/work/dir/runs.db"),
        ("sqlite:////var/lib/runs.db", "/var/lib/runs.db"),
        ("runs.db", "/work/dir/runs.db"),
        ("/var/lib/runs.db", "/var/lib/runs.db"),
        ("sqlite:///with space/ü.db", "/work/dir/with space/ü.db"),
    ],
)
def test_a_setting_names_a_file(
    setting: str, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(sqlite_path(setting)) == path.replace("/work/dir", str(tmp_path))


@pytest.mark.parametrize("setting", ["sqlite:///", "", ":memory:", "sqlite:///:memory:"])
def test_a_database_that_lasts_needs_a_file(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=r"needs a file.*durable_endpoints\.testing"):
        sqlite_path(setting)


@pytest.mark.parametrize("setting", ["postgresql://a/b", "sqlite://runs.db", "mysql://x"])
def test_another_scheme_is_refused_with_what_to_write(setting: str) -> None:
    with pytest.raises(ConfigurationError, match="sqlite:///path/to"):
        sqlite_path(setting)
