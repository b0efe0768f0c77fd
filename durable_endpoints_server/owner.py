"""The name of a process in leases, which also tells on which start of which machine it ran."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ulid import ULID

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def new_owner() -> str:
    """A name that no other process has, or ever had."""
    return f"{_boot_id()}/{socket.gethostname()}:{os.getpid()}:{ULID()}"


def is_same_boot(first: str, second: str) -> bool:
    """Whether the machine was certainly not started anew between two owners: then what the first
    one wrote, be it only into the operating system's memory, is there for the second. Where the
    system does not tell (it does on Linux), nothing is certain."""
    boot = first.partition("/")[0]
    return bool(boot) and boot == second.partition("/")[0]


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""
