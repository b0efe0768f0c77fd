"""User code of every kind has the types that it should have, and wrong code is an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.requirements import need

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MARK = "# error"
"""At the end of a line in `wrong/` that each checker must report."""


class Finding(NamedTuple):
    """An error that a checker reports."""

    folder: str
    file: str
    line: int
    message: str


def found(file: str, line: int, message: str) -> Finding:
    return Finding(Path(file).parent.name, Path(file).name, line, message)


def run(*command: str | Path) -> str:
    """What a checker prints. Pyright is fetched from npm when it runs for the first time."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    need("{" in done.stdout, f"{command[0]} that runs: {done.stderr[-500:]}")
    return done.stdout[done.stdout.index("{") :]


def mypy(folder: Path) -> list[Finding]:
    checked = [HERE / "right", HERE / "wrong"]
    output = run("mypy", "--strict", "--output=json", f"--cache-dir={folder}", *checked)
    lines: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    return [
        found(each["file"], each["line"], each["message"])
        for each in lines
        if each["severity"] == "error"
    ]


def pyright(folder: Path) -> list[Finding]:
    output = run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", HERE)
    return [
        found(each["file"], each["range"]["start"]["line"] + 1, each["message"])
        for each in json.loads(output)["generalDiagnostics"]
        if each["severity"] == "error"
    ]


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_right_code_has_no_errors_and_each_mistake_is_one(
    checker: Callable[[Path], list[Finding]], tmp_path: Path
) -> None:
    need(find_spec(checker.__name__) is not None, checker.__name__)
    wrong = {
        (path.name, number): line.strip()
        for path in sorted((HERE / "wrong").glob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if line.endswith(MARK)
    }
    findings = checker(tmp_path)
    unexpected = [
        finding
        for finding in findings
        if finding.folder != "wrong" or (finding.file, finding.line) not in wrong
    ]
    assert not unexpected
    reported = {(finding.file, finding.line) for finding in findings}
    assert not {place: line for place, line in wrong.items() if place not in reported}
