"""`python -m tests.mutations [--simulation] [NAME …]`: plants bugs, and prints what found each, and
when. With `--simulation`, the simulation has to find them alone."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.mutations.nursery import PATIENCE, Nursery, Verdict
from tests.mutations.planted import PLANTED
from tests.mutations.planting import OutdatedError, Planted, copy_packages, plant

_SIMULATION: Final = ("tests/simulation",)
_LONG: Final = 600.0
"""Seconds that the simulation may take, on a machine that is busy."""


def main(arguments: list[str]) -> int:
    """Returns how many bugs were not found."""
    names = [argument for argument in arguments if argument != "--simulation"]
    if unknown := set(names) - {bug.name for bug in PLANTED}:
        sys.exit(f"{__doc__}\n\nThere is no bug {', '.join(map(repr, sorted(unknown)))}.")
    bugs = [bug for bug in PLANTED if not names or bug.name in names]
    patience = PATIENCE
    if "--simulation" in arguments:
        bugs, patience = [bug._replace(found_by=_SIMULATION) for bug in bugs], _LONG
    missed = 0
    with Nursery() as nursery:
        tests = tuple({test for bug in bugs for test in bug.found_by})
        verdict = _tried(nursery, None, tests, _LONG)
        if verdict.failed or verdict.trouble:
            missed += 1  # the tests that find bugs have to pass without one
            print(f"WITHOUT ANY BUG: {verdict.trouble or verdict.failed[0]}", flush=True)
        for bug in bugs:
            try:
                verdict = _tried(nursery, bug, bug.found_by, patience)
            except OutdatedError as error:
                verdict = Verdict((), f"outdated: {error}", "", 0)
            if verdict.failed and not verdict.trouble:
                found = verdict.failed[0]
            else:
                missed += 1
                found = f"NOT FOUND. {verdict.trouble or bug.breaks}"
            print(f"{verdict.seconds:5.1f} s  {bug.name:55} {found}", flush=True)
    print(f"{len(bugs)} bugs, {missed} not found")
    return missed


def _tried(
    nursery: Nursery, bug: Planted | None, tests: tuple[str, ...], patience: float
) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        if bug is None:
            copy_packages(Path(folder))
        else:
            plant(bug, Path(folder))
        return nursery.run(Path(folder), tests, patience)


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
