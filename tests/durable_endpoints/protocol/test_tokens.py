from __future__ import annotations

from durable_endpoints.protocol.tokens import sign_run, verify_run


def test_a_token_opens_its_own_run_only() -> None:
    token = sign_run(b"key", "run-1")
    assert verify_run([b"key"], "run-1", token)
    assert not verify_run([b"key"], "run-2", token)
    assert not verify_run([b"other"], "run-1", token)
    assert not verify_run([], "run-1", token)


def test_a_token_signed_with_the_fallback_key_is_good_until_that_goes() -> None:
    token = sign_run(b"old", "run-1")
    assert verify_run([b"new", b"old"], "run-1", token)
    assert not verify_run([b"new"], "run-1", token)


def test_nonsense_is_no_token() -> None:
    for token in ("", "x", "ü", "\ud800", sign_run(b"key", "run-1") + "=", "A" * 10_000):
        assert not verify_run([b"key"], "run-1", token)
