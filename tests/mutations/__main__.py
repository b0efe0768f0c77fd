"""`python -m tests.mutations [NAME …]`: plants each bug, and prints what found it, and when."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.mutations.nursery import PATIENCE, Nursery, Verdict
from tests.mutations.planted import PLANTED
from tests.mutations.planting import OutdatedError, Planted, copy_packages, plant


def main(names: list[str]) -> int:
    """Returns how many bugs were not found."""
    bugs = [bug for bug in PLANTED if not names or bug.name in names]
    missed = 0
    with Nursery() as nursery:
        tests = tuple({test for bug in bugs for test in bug.found_by})
        verdict = _tried(nursery, None, tests, PATIENCE * len(bugs))
        if verdict.failed or verdict.trouble:
            missed += 1  # the tests that find bugs have to pass without one
            print(f"WITHOUT ANY BUG: {verdict.trouble or verdict.failed[0]}", flush=True)
        for bug in bugs:
            try:
                verdict = _tried(nursery, bug, bug.found_by, PATIENCE)
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
