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
_REPLICAS = ("replicas,first,", "replicas,second,")


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

    def wait_for_both(self) -> None:
        """Return once it sends requests to both replicas."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            servers = httpx.get(f"{self.url}/haproxy;csv", timeout=5).text.splitlines()
            up = [line for line in servers if line.startswith(_REPLICAS) and ",UP," in line]
            if len(up) == 2:
                return
            assert time.monotonic() < deadline, servers
            time.sleep(0.05)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
