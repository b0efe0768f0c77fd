"""Each planted bug is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutations.nursery import Nursery
from tests.mutations.planted import PLANTED
from tests.mutations.planting import OutdatedError, Planted, plant


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_it_is_found(bug: Planted, nursery: Nursery, tmp_path: Path) -> None:
    plant(bug, tmp_path)
    verdict = nursery.run(tmp_path, bug.found_by)
    assert not verdict.trouble, verdict.output
    assert verdict.failed, f"nothing notices that {bug.breaks}:\n{verdict.output}"


def test_a_bug_whose_place_is_gone_is_outdated(tmp_path: Path) -> None:
    bug = PLANTED[0]._replace(old="no such text")
    with pytest.raises(OutdatedError, match="0 times"):
        plant(bug, tmp_path)


def test_a_source_that_does_not_run_is_no_bug(nursery: Nursery, tmp_path: Path) -> None:
    bug = PLANTED[0]
    plant(bug._replace(new="raise NameError('no such name')"), tmp_path)
    assert nursery.run(tmp_path, bug.found_by).trouble
