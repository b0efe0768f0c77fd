"""A load balancer before the replicas of an application: Debian's haproxy."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx

from tests.chaos.process import Server, free_port
from tests.requirements import need

_CONFIGURATION = Path(__file__).with_name("haproxy.cfg")
_PATIENCE = 20.0


class LoadBalancer:
    """haproxy, on a port of its own, as `haproxy.cfg` says."""

    def __init__(self, first: Server, second: Server) -> None:
        program = shutil.which("haproxy")
        need(program is not None, "haproxy")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        ports = {"PORT": str(port), "FIRST": str(first.port), "SECOND": str(second.port)}
        self._process = subprocess.Popen(
            [str(program), "-db", "-f", str(_CONFIGURATION)],
            env={**os.environ, **ports},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                httpx.get(f"{self.url}/alive", timeout=1).raise_for_status()
                return
            except httpx.HTTPError:
                assert self._process.poll() is None, "haproxy has ended"
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
