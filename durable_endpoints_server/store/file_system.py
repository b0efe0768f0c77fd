"""The file system that a database is on, and what there is to say about it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger("durable_endpoints")

_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|vboxsf|ceph|lustre|afs|gpfs|beegfs|glusterfs|davfs"
    r"|fuse\.(sshfs|glusterfs\w*|ceph\S*|s3fs|rclone|gcsfuse|mount-s3|davfs\w*)"
)
"""File systems of other machines, by the names that Linux gives them."""
_MEMORY = frozenset({"tmpfs", "ramfs"})
_MOUNTS = Path("/proc/self/mountinfo")
_IN_CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))


def check_file_system(
    path: Path, mounts: Path = _MOUNTS, in_container: Iterable[Path] = _IN_CONTAINER
) -> None:
    """Look at the file system that a database is on, where Linux tells."""
    mount = _mount_of(path, mounts)
    if mount is None:
        return
    advice = "name a database on a disk of this machine (DURABLE_ENDPOINTS_DATABASE)"
    if _NETWORK.fullmatch(mount.kind):
        logger.warning(
            "the database %s is on a network file system (%s at %s), where SQLite's locks and its "
            "write-ahead log cannot be relied on, and runs may be lost: %s",
            path,
            mount.kind,
            mount.point,
            advice,
        )
    elif mount.kind in _MEMORY:
        logger.warning(
            "the database %s is in memory (%s at %s), and gone when the machine restarts: %s",
            path,
            mount.kind,
            mount.point,
            advice,
        )
    elif mount.kind == "overlay" and mount.point == "/" and any(p.exists() for p in in_container):
        logger.warning(
            "the database %s is in this container's own file system, and gone with the container: "
            "mount a volume, and name a database in it (DURABLE_ENDPOINTS_DATABASE)",
            path,
        )


class _Mount(NamedTuple):
    """A line of /proc/self/mountinfo (proc(5)), as far as it matters here."""

    point: str
    kind: str


def _mount_of(path: Path, mounts: Path) -> _Mount | None:
    """The mount that a file is on: the last one of those whose point is the longest above it."""
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    best: _Mount | None = None
    for line in lines:
        left, _, right = line.partition(" - ")
        if len(left.split()) < 5 or not right:
            continue
        mount = _Mount(_unescape(left.split()[4]), right.split()[0])
        if path.is_relative_to(mount.point) and (
            best is None or len(mount.point) >= len(best.point)
        ):
            best = mount
    return best


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
