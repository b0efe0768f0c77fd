from __future__ import annotations

from durable_endpoints.protocol.tokens import Grant, sign_run, verify_run


def test_a_token_opens_its_own_run_only() -> None:
    token = sign_run(b"key", "run-1", Grant.READ)
    assert verify_run([b"key"], "run-1", token) is Grant.READ
    assert verify_run([b"key"], "run-2", token) is None
    assert verify_run([b"other"], "run-1", token) is None
    assert verify_run([], "run-1", token) is None


def test_a_token_says_whether_it_may_cancel() -> None:
    token = sign_run(b"key", "run-1", Grant.CANCEL)
    assert verify_run([b"key"], "run-1", token) is Grant.CANCEL
    assert token != sign_run(b"key", "run-1", Grant.READ)


def test_a_token_signed_with_the_fallback_key_is_good_until_that_goes() -> None:
    token = sign_run(b"old", "run-1", Grant.READ)
    assert verify_run([b"new", b"old"], "run-1", token) is Grant.READ
    assert verify_run([b"new"], "run-1", token) is None


def test_nonsense_is_no_token() -> None:
    good = sign_run(b"key", "run-1", Grant.READ)
    for token in ("", "x", "ü", "\ud800", good + "=", "A" * 10_000):
        assert verify_run([b"key"], "run-1", token) is None
