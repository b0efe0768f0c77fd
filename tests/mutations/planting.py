"""A bug that is planted: one change of the shipped source, and the tests that must notice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("durable_endpoints", "durable_endpoints_server")


class Planted(NamedTuple):
    """One bug."""

    name: str
    file: str
    """Where it is planted, from the root of the checkout."""
    old: str
    """What is there now: once, and nowhere else in the file."""
    new: str
    breaks: str
    """The promise that does not hold any more."""
    found_by: tuple[str, ...]
    """The smallest tests that notice, as pytest names them."""


class OutdatedError(Exception):
    """The source is not what the bug was written for: the entry has to be written anew."""


def plant(bug: Planted, folder: Path) -> None:
    """Copy the shipped packages into `folder`, with the bug. Raises `OutdatedError`."""
    source = (ROOT / bug.file).read_text("utf-8")
    if (times := source.count(bug.old)) != 1:
        raise OutdatedError(f"{bug.name}: {bug.file} has the text {times} times:\n{bug.old}")
    copy_packages(folder)
    target = folder / bug.file
    target.unlink()  # it may be the same file as the original
    target.write_text(source.replace(bug.old, bug.new), "utf-8")
    for compiled in (target.parent / "__pycache__").glob(f"{target.stem}.*"):
        compiled.unlink()


def copy_packages(folder: Path) -> None:
    """Copy the shipped packages, as links where that is possible."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
