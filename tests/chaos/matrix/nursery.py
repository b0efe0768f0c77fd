"""A warm process that forks others: a new life begins within a tenth of a second.

It has imported what is slow to import, has no threads and no event loop, and does nothing else: it
takes orders as lines of JSON from its standard input, and writes there what becomes of its
children. Its end is theirs.

    {"name": "app", "role": "app", "folder": "…", "log": "…", "environment": {…}, "arguments": […]}
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

ROOT = Path(__file__).parents[3]


class News(NamedTuple):
    """What has become of a child: `born`, `stopped`, or `ended` by a signal or with a status."""

    what: str
    name: str
    process: int
    code: int
    """The exit status, or a negative signal number."""


class Nursery:
    """The handle of one such process. To be used in one event loop."""

    def __init__(self, tell: Callable[[News], None]) -> None:
        """`tell` hears what becomes of the children."""
        self._tell = tell

    async def __aenter__(self) -> Nursery:
        mine, its = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.matrix.nursery"],
            stdin=its.fileno(),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
        )
        its.close()
        self._reader, self._writer = await asyncio.open_connection(sock=mine)
        self._listens = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()
        await self._listens
        self._process.wait()

    def order(self, name: str, role: str, folder: Path, *arguments: str, **env: str) -> None:
        """Let a child be born."""
        order = {
            "name": name,
            "role": role,
            "folder": str(folder),
            "arguments": arguments,
            "environment": env,
        }
        self._writer.write(orjson.dumps(order) + b"\n")

    async def _listen(self) -> None:
        while line := await self._reader.readline():
            self._tell(News(*orjson.loads(line)))


def _serve(orders: socket.socket) -> None:
    """Fork, and wait, until nobody gives orders any more."""
    names: dict[int, str] = {}
    try:
        _obey(orders, names)
    except ConnectionError:
        pass  # who gave orders was killed, and cannot be told any more
    finally:
        for child in names:
            os.kill(child, signal.SIGKILL)


def _obey(orders: socket.socket, names: dict[int, str]) -> None:
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)

    def tell(news: News) -> None:
        orders.sendall(orjson.dumps(list(news)) + b"\n")

    rest = b""
    while True:
        ready, _, _ = select.select([orders, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            for news in _look(names):
                tell(news)
        if orders not in ready:
            continue
        data = orders.recv(65_536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            order = orjson.loads(line)
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                for end in (orders, woken, wakes):
                    end.close()
                _live(order)
            names[child] = order["name"]
            tell(News("born", order["name"], child, 0))


def _look(names: dict[int, str]) -> list[News]:
    found = []
    while names:
        process, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if process == 0:
            break
        if os.WIFSTOPPED(status):
            found.append(News("stopped", names[process], process, 0))
        else:
            code = os.waitstatus_to_exitcode(status)
            found.append(News("ended", names.pop(process), process, code))
    return found


def _live(order: dict[str, Any]) -> None:
    """A child's life."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folder = Path(order["folder"])
    log = os.open(folder / f"{order['name']}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in ((0, nothing), (1, log), (2, log)):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.update(order["environment"])
    code = 1
    try:
        from tests.chaos.matrix.roles import ROLES

        ROLES[order["role"]](*order["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import tests.chaos.matrix.roles

    tests.chaos.matrix.roles.warm_up()
    with socket.socket(fileno=os.dup(0)) as standard_input:
        _serve(standard_input)
