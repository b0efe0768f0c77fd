"""Encryption of step data in the application, so that its engine holds nothing readable.

app.add_middleware(DurableEndpointsMiddleware, hooks=[StepEncryption()])
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from durable_endpoints.errors import ConfigurationError
from durable_endpoints.hooks import Hook, StepData
from durable_endpoints.sealing import derive_key

_STRATEGY = "durable-endpoints/aes-gcm"
_NONCE = 12
_VARIABLE = "DURABLE_ENDPOINTS_ENCRYPTION_KEY"


class StepEncryption(Hook):
    """A hook that encrypts what the application's steps return and raise (AES-256-GCM), bound to
    the run and the step, so that it cannot be moved to another.

    `key` is a secret of at least 32 characters; by default it comes from the variable
    `DURABLE_ENDPOINTS_ENCRYPTION_KEY`. `fallback_keys` (by default the one in
    `DURABLE_ENDPOINTS_ENCRYPTION_KEY_FALLBACK`) open what they have encrypted, too. To rotate:
    make the old key a fallback, and drop it when no run is left that began under it. Where several
    processes share an engine, give all of them the new key as a fallback first. What is not
    encrypted is read as it is, so encryption can be turned on while runs are under way;
    `decrypt_only=True` turns it off again in the same way.

    A run whose step data no key opens is parked: nothing is lost, and `durable-endpoints runs
    retry` lets it go on once the key is there. Not encrypted are what the engine needs (names of
    steps, events and signals, the data of events and signals, what waits match, method and path)
    and what a stream shows. Requests and responses are sealed anyway, by the sealing key. An
    encrypted result is a third larger, which counts for `max_result`.

    Raises `ConfigurationError` without a key, or with one that is too short.
    """

    def __init__(
        self,
        key: str | None = None,
        fallback_keys: Sequence[str] | None = None,
        *,
        decrypt_only: bool = False,
    ) -> None:
        if key is None:
            key = os.environ.get(_VARIABLE, "")
            if not key:
                raise ConfigurationError(
                    f"StepEncryption needs a key: set {_VARIABLE}, or write StepEncryption(key). "
                    "`openssl rand -hex 32` makes a good one"
                )
        if fallback_keys is None:
            fallback_keys = [value] if (value := os.environ.get(f"{_VARIABLE}_FALLBACK")) else []
        if isinstance(fallback_keys, str):
            raise ConfigurationError("fallback_keys is a list of keys, not one")
        if not all(
            isinstance(secret, str) and len(secret) >= 32 for secret in (key, *fallback_keys)
        ):
            raise ConfigurationError(
                "a key for StepEncryption is a text of at least 32 characters: "
                "`openssl rand -hex 32`"
            )
        self._key_id = _id_of(key)
        self._keys = {
            _id_of(secret): AESGCM(derive_key(secret, "durable-endpoints step data v1"))
            for secret in (key, *fallback_keys)
        }
        self._decrypt_only = decrypt_only

    def encode(self, where: StepData, data: bytes) -> bytes:
        """The data, encrypted, as a JSON object."""
        if self._decrypt_only:
            return data
        nonce = os.urandom(_NONCE)
        sealed = nonce + self._keys[self._key_id].encrypt(nonce, data, _bound_to(where))
        envelope = {
            "__ENCRYPTED__": True,
            "__STRATEGY__": _STRATEGY,
            "key": self._key_id,
            "data": b64encode(sealed).decode(),
        }
        if where.kind == "error":  # for whoever lists errors without having the key
            envelope |= {"name": "Encrypted", "message": "the application encrypted this error"}
        return orjson.dumps(envelope)

    def decode(self, where: StepData, data: bytes) -> bytes:
        """The data as it was. Raises `ValueError` if no key opens it."""
        if not data.startswith(b'{"__ENCRYPTED__":true'):
            return data
        envelope = orjson.loads(data)
        if envelope.get("__STRATEGY__") != _STRATEGY:
            return data
        key = self._keys.get(envelope["key"])
        if key is None:
            raise ValueError(
                f"it was encrypted with another key (id {envelope['key']}): give that one as "
                f"{_VARIABLE}_FALLBACK, or in fallback_keys"
            )
        sealed = b64decode(envelope["data"])
        try:
            return key.decrypt(sealed[:_NONCE], sealed[_NONCE:], _bound_to(where))
        except InvalidTag:
            raise ValueError("it was changed, or belongs to another run or step") from None


def _id_of(secret: str) -> str:
    """What tells keys apart, and tells nothing about them."""
    return sha256(b"durable-endpoints key id\0" + secret.encode()).hexdigest()[:16]


def _bound_to(where: StepData) -> bytes:
    return f"{where.run_id}\0{where.step}\0{where.kind}".encode()
