"""The keys of an application whose runs a server keeps: the server never has them."""

from __future__ import annotations

import os
from pathlib import Path

from durable_endpoints.engines.remote.dialing import is_local
from durable_endpoints.errors import ConfigurationError
from durable_endpoints.sealing import Keyring, key_file
from durable_endpoints.settings import Settings

_FILE = Path(".durable") / "endpoints.key"


def keyring(settings: Settings) -> Keyring:
    """Configured keys. With a server on this machine, what is not configured is the secret of a
    key file in the working folder, so that processes that are started there share it.

    Raises `ConfigurationError` if a key is needed, or the file cannot be made.
    """
    assert settings.server_url is not None
    signing = [key for key in (settings.signing_key, settings.signing_key_fallback) if key]
    sealing = [key for key in (settings.sealing_key, settings.sealing_key_fallback) if key]
    if signing and sealing:
        return Keyring(signing, sealing)
    if not is_local(settings.server_url):
        missing = "SEALING_KEY" if signing else "SIGNING_KEY"
        raise ConfigurationError(
            f"the server {settings.server_url} is not on this machine, so each replica needs the "
            f"same DURABLE_ENDPOINTS_{missing} (signing keys open the server and make tokens; "
            "sealing keys encrypt requests and responses, and the server never has them): make "
            "one with `openssl rand -hex 32`"
        )
    secret = key_file(_made(_FILE))
    return Keyring(signing or [secret], sealing or [secret])


def _made(path: Path) -> Path:
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            (path.parent / ".gitignore").write_text("*\n", "utf-8")
        if not os.access(path.parent, os.W_OK) and not path.exists():
            raise PermissionError(None, "it cannot be written")
    except FileExistsError:
        pass  # another process was faster
    except OSError as error:
        raise ConfigurationError(
            f"the folder {path.parent.absolute()} of the key file cannot be used: "
            f"{error.strerror}. Set DURABLE_ENDPOINTS_SIGNING_KEY and DURABLE_ENDPOINTS_SEALING_KEY"
        ) from error
    return path
