"""What the peers need, in exactly the versions that the files beside this one name: a virtual
environment or `node_modules` each, in a folder of the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).parent


class Missing(Exception):
    """A peer cannot be installed on this machine; the message says why."""


def python(name: str) -> Path:
    """The interpreter that has the packages of `NAME.txt`."""
    wanted = HERE / f"{name}.txt"
    folder = _folder(name, wanted, sys.version.encode())
    interpreter = folder / "bin" / "python"
    if not (folder / "complete").exists():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "install", "--quiet", "--requirement", str(wanted)])
        (folder / "complete").touch()
    return interpreter


def node_modules() -> Path:
    """A folder with the packages of `package-lock.json`, and a copy of the application."""
    folder = _folder("node", HERE / "package-lock.json", b"")
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Missing(f"there is no {program}")
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("package.json", "package-lock.json", "inngest_app.js"):
        shutil.copy(HERE / file, folder)
    if not (folder / "complete").exists():
        options = ["--ignore-scripts", "--no-audit", "--no-fund"]
        _run(["npm", "ci", *options, "--prefix", str(folder)])
        (folder / "complete").touch()
    return folder


def _folder(name: str, wanted: Path, more: bytes) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = sha256(wanted.read_bytes() + more).hexdigest()[:12]
    return cache / "durable-endpoints-benchmarks" / f"{name}-{version}"


def _run(command: Sequence[str]) -> None:
    print(f"installing: {' '.join(command)}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
