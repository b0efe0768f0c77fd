"""URLs as messages and logs may show them."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(?<=://)[^/?#\s]*@")


def without_credentials(text: str) -> str:
    """`text` without the user and the password of URLs in it (RFC 3986 §3.2.1)."""
    return _USER_INFO.sub("…@", text)
