"""Keys and signatures: what is accepted, and what is not."""

from __future__ import annotations

from hashlib import sha256

import pytest

from durable_endpoints.protocol import signing

KEY = "signkey-prod-" + "0123456789abcdef" * 4
OTHER = "signkey-test-" + "f" * 64
NOW = 1_800_000_000


def test_a_caller_shows_the_hash_of_the_hex_key_with_its_prefix() -> None:
    expected = sha256(bytes.fromhex("0123456789abcdef" * 4)).hexdigest()
    assert signing.hashed(KEY) == f"signkey-prod-{expected}"


@pytest.mark.parametrize(
    "presented",
    [KEY, signing.hashed(KEY), signing.without_prefix(KEY), signing.hashed(KEY)[13:]],
)
def test_a_key_is_known_in_each_of_its_forms(presented: str) -> None:
    assert signing.is_key(presented, [OTHER, KEY])


@pytest.mark.parametrize("presented", ["", "signkey-prod-", KEY[:-1], KEY + "0", "ü", "\udc80"])
def test_nothing_else_is_a_key(presented: str) -> None:
    assert not signing.is_key(presented, [KEY])


def test_any_text_can_be_a_key() -> None:
    assert signing.is_key(signing.hashed("correct horse battery"), ["correct horse battery"])


def test_a_signature_is_good_for_its_body_and_for_some_minutes() -> None:
    header = signing.sign(KEY, b'{"b":1,"a":2}', NOW)
    assert signing.verify([OTHER, KEY], header, b'{"b":1,"a":2}', NOW + 299)
    assert not signing.verify([OTHER, KEY], header, b'{"b":1,"a":3}', NOW)
    assert not signing.verify([KEY], header, b'{"b":1,"a":2}', NOW + 301)
    assert not signing.verify([KEY], header, b'{"b":1,"a":2}', NOW - 301)
    assert not signing.verify([OTHER], header, b'{"b":1,"a":2}', NOW)


def test_a_signature_over_canonical_json_is_good_too() -> None:
    header = signing.sign(KEY, b'{"a":2,"b":[{"c":1,"d":1}]}', NOW)
    assert signing.verify([KEY], header, b'{ "b": [{"d":1, "c":1}], "a": 2 }', NOW)


@pytest.mark.parametrize(
    "header", ["", "t=1", "s=1", "t=x&s=y", f"t={NOW}&s=", "&" * 50, "t=²&s=1"]
)
def test_what_is_no_signature_is_refused(header: str) -> None:
    assert not signing.verify([KEY], header, b"", NOW)
    assert not signing.verify_request([KEY], header, "GET", "/", "run", b"", NOW)


def test_the_second_signature_is_for_one_request_only() -> None:
    request = ("POST", "/x?a=1", "01J", b"body")
    header = signing.sign_request(KEY, *request, NOW)
    assert signing.verify_request([KEY], header, *request, NOW)
    for other in (
        ("PUT", "/x?a=1", "01J", b"body"),
        ("POST", "/x?a=2", "01J", b"body"),
        ("POST", "/x?a=1", "01K", b"body"),
        ("POST", "/x?a=1", "01J", b"bodY"),
    ):
        assert not signing.verify_request([KEY], header, *other, NOW)
