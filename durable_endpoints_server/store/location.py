"""Where a database setting points."""

from __future__ import annotations

from pathlib import Path

from durable_endpoints.protocol.errors import ConfigurationError
from durable_endpoints.protocol.urls import without_credentials

DEFAULT_DATABASE = "sqlite:///.durable/endpoints.db"

_SCHEME = "sqlite:///"


def sqlite_path(database: str) -> Path:
    """The file that a setting means: `sqlite:///relative`, `sqlite:////absolute` or a plain path.

    Raises `ConfigurationError` for any other scheme, and for a database that is no file.
    """
    if database.startswith(_SCHEME):
        database = database.removeprefix(_SCHEME)
    elif "://" in database:
        shown = without_credentials(repr(database))
        if database.startswith("sqlite"):
            raise ConfigurationError(
                f"database={shown}: write three slashes and a path, as in "
                '"sqlite:///path/to/endpoints.db", and four before an absolute one'
            )
        raise ConfigurationError(
            f"database={shown}: this version stores in SQLite only; write "
            '"sqlite:///path/to/endpoints.db"'
        )
    if not database or database == ":memory:":
        raise ConfigurationError(
            f"database={database!r}: a durable database needs a file; for tests there is "
            "durable_endpoints.testing"
        )
    # Two names of one file must not be two databases: the lock and the key file go by the name.
    return Path(database).resolve()
