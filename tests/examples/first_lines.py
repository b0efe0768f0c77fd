"""What an example's first lines tell to type, typed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from textwrap import dedent

from tests.chaos.process import ROOT, Server
from tests.requirements import need


def commands(example: str) -> str:
    """The indented lines of its docstring, without the one that starts the server."""
    docstring = (ROOT / "examples" / f"{example}.py").read_text("utf-8").split('"""')[1]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", docstring, re.MULTILINE)
    lines = dedent("".join(blocks)).splitlines()
    return "\n".join(line for line in lines if not line.startswith(("uvicorn ", "open ")))


def type_into_shell(server: Server, script: str, patience: float = 30) -> str:
    """What the commands print, said to this server instead of the usual one."""
    for program in ("bash", "curl", "openssl"):
        need(shutil.which(program) is not None, program)
    here = {
        "localhost:8000": server.url[7:],
        "python examples": f"{sys.executable} {ROOT}/examples",
    }
    for what, instead in here.items():
        script = script.replace(what, instead)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=patience,
        cwd=server.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
