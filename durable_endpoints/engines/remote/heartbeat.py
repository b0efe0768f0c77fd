"""Heartbeats from a thread: a process whose event loop is blocked lives all the same."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

import httpx
import orjson

from durable_endpoints.engines.remote.dialing import REFUSED_KEY, Keys, is_local
from durable_endpoints.protocol import wire

logger = logging.getLogger("durable_endpoints")


class Heartbeat:
    """Tells a server at regular times that this process lives, until `stop`."""

    def __init__(
        self, url: str, keys: Keys, names: Callable[[], Iterable[str]], interval: float
    ) -> None:
        """`names` gives those under which the process is known there; `interval` is in seconds."""
        self._url = url + wire.HEARTBEAT_PATH
        self._keys = keys
        self._names = names
        self._interval = interval
        self._stopped = threading.Event()
        # Not one that holds up the end of the process.
        self._thread = threading.Thread(target=self._run, name="durable-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more of them."""
        self._stopped.set()

    def _run(self) -> None:
        timeout = max(1.0, self._interval)
        with httpx.Client(timeout=timeout, trust_env=not is_local(self._url)) as client:
            while not self._stopped.wait(self._interval):
                for name in list(self._names()):
                    self._beat(client, name)

    def _beat(self, client: httpx.Client, name: str) -> None:
        body = orjson.dumps({"process": name})
        try:
            for _ in self._keys.tries():
                headers = {"Content-Type": "application/json", **self._keys.headers()}
                status = client.post(self._url, content=body, headers=headers).status_code
                if status not in REFUSED_KEY:
                    break
                self._keys.turn()
        except httpx.HTTPError as error:
            # The link says so, where it matters.
            logger.debug("a heartbeat did not reach the server: %s", error)
