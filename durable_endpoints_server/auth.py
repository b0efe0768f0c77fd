"""Who may do what at a companion server: signing keys, event keys, tokens of runs."""

from __future__ import annotations

from typing import Literal

from starlette.requests import HTTPConnection

from durable_endpoints.protocol import signing, tokens
from durable_endpoints_server.settings import ServerSettings

Purpose = Literal["output", "realtime"]

_DEV_SECRET = "development is not secret"


class Keys:
    """The keys of one server. In development everything is allowed but to forge a token's run."""

    def __init__(self, settings: ServerSettings) -> None:
        self._dev = settings.dev
        self.signing = settings.signing_keys
        """The first one signs what this server sends; all are accepted."""
        self._events = settings.event_keys
        secrets = [signing.without_prefix(key) for key in self.signing] or [_DEV_SECRET]
        self._secrets = [secret.encode() for secret in secrets]

    def allows(self, connection: HTTPConnection) -> bool:
        """Whether the caller shows a signing key (`Authorization: Bearer …`)."""
        if self._dev:
            return True
        scheme, _, presented = connection.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and signing.is_key(presented.strip(), self.signing)

    def allows_events(self, key: str) -> bool:
        """Whether `key`, from the path of `/e/{key}`, may send events."""
        return self._dev or signing.is_key(key, self._events)

    def sign_run(self, purpose: Purpose, run_id: str) -> str:
        """A token that opens one thing of one run."""
        return tokens.sign_run(self._secrets[0], f"{purpose} {run_id}", tokens.Grant.READ)

    def opens_run(self, purpose: Purpose, run_id: str, token: str) -> bool:
        """Whether a token opens that, made with any of the keys."""
        return tokens.verify_run(self._secrets, f"{purpose} {run_id}", token) is not None
