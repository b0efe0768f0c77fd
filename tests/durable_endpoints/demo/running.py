"""The demo as a newcomer runs it: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def demo(*arguments: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "durable_endpoints_server", "demo", *arguments]
    # Settings of another application in the environment are not the demo's.
    environment = {
        **os.environ,
        "DURABLE_ENDPOINTS_DATABASE": str(folder / "not-this.db"),
        "DURABLE_DEMO_LLM_URL": "http://not-this.invalid",
        "TMPDIR": str(folder),
        **env,
    }
    return subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
