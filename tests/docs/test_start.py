"""The five-minute start, done by a shell as a reader would do it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.chaos.process import free_port
from tests.docs.pages import ROOT, Block, blocks
from tests.requirements import need

_PAGE = ROOT / "docs" / "start.md"
_QUIET = 'curl() { command curl --no-progress-meter "$@"; }'


def test_the_start_page_goes_as_it_says(tmp_path: Path) -> None:
    need(bool(shutil.which("bash") and shutil.which("curl")), "bash and curl")
    found = list(blocks(_PAGE))
    port = free_port()
    script, expected = _script(found, port, tmp_path)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = [part.strip("\n") for part in done.stdout.split("=====\n")[1:]]
    assert len(said) == len(expected), done.stderr
    for (line, text), output in zip(expected, said, strict=True):
        where = f"{_PAGE.name}:{line}\n--- expected\n{text}\n--- got\n{output}\n{done.stderr}"
        assert re.fullmatch(_pattern(text), output), where


def _script(found: list[Block], port: int, folder: Path) -> tuple[str, list[tuple[int, str]]]:
    """All shell blocks as one session, and what each is to print."""
    lines, expected, program = [_QUIET], [], ""
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language == "python":
            # The second version replaces the handler of the first one.
            program = program.partition("@app.post")[0] + block.code
            (folder / f"main-{block.line}.py").write_text(_hurried(program))
            lines.append(f"cp main-{block.line}.py main.py")
        elif block.language == "sh":
            lines += ["echo; echo =====", _patient(_hurried(block.code))]
            says = after is not None and after.language == "text"
            expected.append((block.line, after.code.strip() if after and says else ""))
    on_port = [(line, text.replace("8000", str(port))) for line, text in expected]
    return "\n".join(lines).replace("8000", str(port)), on_port


def _hurried(code: str) -> str:
    """The same, sooner."""
    return re.sub(r"(sleep[ (])(\d+)", lambda found: f"{found[1]}{int(found[2]) / 2.5}", code)


def _patient(code: str) -> str:
    """A server on a port of its own, waited for on slow machines."""
    ready = r"\g<0>; until curl -so /dev/null localhost:8000/docs; do sleep 0.05; done"
    return re.sub(
        r"^uvicorn .*$", ready, code.replace("main:app", "main:app --port 8000"), flags=re.M
    )


def _pattern(text: str) -> str:
    """A regular expression for what may be printed: … is any text, spaces are any spaces."""
    return re.sub(r"(\\ )+", r"\\s+", re.escape(text).replace("…", ".*"))


def _environment() -> dict[str, str]:
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": programs, "PYTHONPATH": str(ROOT)}
