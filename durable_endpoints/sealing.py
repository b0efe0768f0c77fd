"""Keys: what signs run tokens, and what seals stored requests and responses.

A stored request holds its caller's credentials, so it is encrypted (AES-256-GCM) before the engine
sees it, bound to its run and its role, and can be moved to no other. Without configured keys the
embedded engine makes a key file beside the database, readable by its owner only.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from durable_endpoints.errors import ConfigurationError, EngineError
from durable_endpoints.protocol import tokens

Part = Literal["request", "response"]

_FORMAT = b"\x01"
_NONCE = 12


class UnsealError(EngineError):
    """None of the keys opens a stored request or response."""


class Keyring:
    """The keys of one application: the first of each kind is used, all are accepted."""

    def __init__(self, signing: Sequence[str], sealing: Sequence[str]) -> None:
        if not signing or not sealing:
            raise ConfigurationError("a signing key and a sealing key are needed")
        self._signing = [derive_key(secret, "durable-endpoints signing v1") for secret in signing]
        self._sealing = [
            AESGCM(derive_key(secret, "durable-endpoints sealing v1")) for secret in sealing
        ]

    def sign_run(self, run_id: str, may_cancel: bool = False) -> str:
        """The token that opens this run, and if it `may_cancel`, can end it."""
        grant = tokens.Grant.CANCEL if may_cancel else tokens.Grant.READ
        return tokens.sign_run(self._signing[0], run_id, grant)

    def verify_run(self, run_id: str, token: str) -> tokens.Grant | None:
        """What `token` may do with this run; None if it does not open it."""
        return tokens.verify_run(self._signing, run_id, token)

    def seal(self, run_id: str, part: Part, data: bytes) -> bytes:
        """Encrypt one part of one run."""
        nonce = os.urandom(_NONCE)
        bound_to = f"{run_id}:{part}".encode()
        return _FORMAT + nonce + self._sealing[0].encrypt(nonce, data, bound_to)

    def unseal(self, run_id: str, part: Part, data: bytes) -> bytes:
        """Decrypt it. Raises `UnsealError` if no key fits, or it belongs elsewhere."""
        bound_to = f"{run_id}:{part}".encode()
        if data[:1] != _FORMAT:
            raise UnsealError(
                f"the stored {part} of run {run_id} is in a format of another version"
            )
        nonce, ciphertext = data[1 : 1 + _NONCE], data[1 + _NONCE :]
        for key in self._sealing:
            try:
                return key.decrypt(nonce, ciphertext, bound_to)
            except (InvalidTag, ValueError):
                continue
        raise UnsealError(
            f"the stored {part} of run {run_id} cannot be opened with the configured keys: give "
            "the key it was sealed with as DURABLE_ENDPOINTS_SEALING_KEY_FALLBACK"
        )


def derive_key(secret: str, purpose: str) -> bytes:
    """32 bytes for one purpose (RFC 5869), from a secret of any length."""
    derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode())
    return derivation.derive(secret.encode())


def key_file(path: Path) -> str:
    """Return the secret in the file at `path`, which is made if there is none.

    Raises `ConfigurationError` if it cannot be read, or holds no key.
    """
    try:
        if not path.exists():
            _make_key_file(path)
    except OSError as error:
        raise ConfigurationError(f"the key file {path} cannot be made: {error.strerror}") from error
    try:
        secret = path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the key file {path} cannot be read: {error}") from error
    if len(secret) < 32:
        raise ConfigurationError(
            f"the key file {path} holds no key: restore it, or delete it together with the "
            "database it belongs to"
        )
    return secret


def _make_key_file(path: Path) -> None:
    """Make it whole, or not at all: a process may die in any line. Another's is not replaced."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # what is sealed with it must not outlive it
        finally:
            os.close(folder)
    finally:
        draft.unlink()
