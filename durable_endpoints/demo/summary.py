"""The demo's summary: what was seen, and whether it is what should have been."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson
from starlette.responses import JSONResponse

from durable_endpoints.client import Rollback
from durable_endpoints.demo import digest
from durable_endpoints.demo.client import Visit
from durable_endpoints.demo.journal import Entry
from durable_endpoints.demo.screen import Screen
from durable_endpoints.demo.writing import count

STEPS = ("count words", "pick key sentences", "write digest", "publish")
APPROVER = "Ada"


@dataclass
class Seen:
    """What was seen while the demo was played."""

    ordinary: Visit
    violent: Visit
    again: Visit
    """The violent part's request once more, when its run had ended."""
    entries: list[Entry] = field(default_factory=list)
    """The application's journal."""
    before_part_two: int = 0
    """How many of the entries are the ordinary part's."""
    exits: list[int] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    on_disk: list[tuple[int, list[str]]] = field(default_factory=list)
    """For each kill: the length of the journal, and the steps the database held then."""
    streams_at_kill: list[int] = field(default_factory=list)
    """For each kill: how many connections the client had used by then."""


def expected_answer(content: bytes) -> bytes:
    """The answer that the handler would give without any engine, and without a language model."""
    text = content.decode("utf-8", "replace")
    counts, sentences = digest.count_words(text), digest.pick_key_sentences(text)
    value = {
        "counts": counts,
        "published": digest.compose(counts, sentences),
        "approved_by": APPROVER,
    }
    return bytes(JSONResponse(value).body)


def summarize(screen: Screen, seen: Seen, expected: bytes | None) -> None:
    """Write the summary. `expected` is the right answer where that can be known."""
    _check_ordinary(screen, seen, expected)
    _check_violent(screen, seen, expected)


def _check_ordinary(screen: Screen, seen: Seen, expected: bytes | None) -> None:
    check, visit = screen.check, seen.ordinary
    part_one = seen.entries[: seen.before_part_two]
    if expected is not None:
        is_right = _answer(visit) == expected
        check(is_right, "the answer is what the text says, computed here too")
    _check_stream(screen, visit, expected is not None)
    check(_overlap(part_one), "the parallel steps ran at the same time")
    tries = [entry.what for entry in part_one if entry.step == "write digest"]
    check(
        tries[:3] == ["begins", "retrying", "begins"] and tries[-1] == "completed",
        "`write digest` failed in its middle and was tried again",
    )
    rest = _pause(part_one, "write digest", "publish")
    check(rest >= 1, f"it slept 1 s at least: {rest:.2f} s between `write digest` and `publish`")
    others = [step for step in STEPS if step != "write digest"]
    check(all(_begun(part_one, step) == 1 for step in others), "every other step ran once")


def _check_violent(screen: Screen, seen: Seen, expected: bytes | None) -> None:
    check, visit, again = screen.check, seen.violent, seen.again
    part_two = seen.entries[seen.before_part_two :]
    check(
        seen.exits[:2] == [-9, -9] and len(set(seen.pids)) == 3,
        f"the application was killed twice (SIGKILL), as processes {seen.pids[0]} and "
        f"{seen.pids[1]}; {seen.pids[2]} finished",
    )
    check(
        all(0 < streams < len(visit.streams) for streams in seen.streams_at_kill),
        "both kills cut the client's stream, and it read on",
    )
    if expected is not None:
        check(_answer(visit) == expected, "it got the same answer all the same")
    _check_stream(screen, visit, expected is not None)
    check(
        len(visit.viewer.withdrawn) >= 2,
        "what the killed try had written was withdrawn too",
    )
    check(
        len({entry.run for entry in part_two}) == 1 and visit.run == again.run is not None,
        "the same POST with its key found its own run: one run, not two",
    )
    check(
        _answer(again) == _answer(visit)
        and again.viewer.committed_text == visit.viewer.committed_text,
        "and got the same text and the same answer again",
    )
    repeated = [
        step for held, steps in seen.on_disk for step in steps if _begun(seen.entries[held:], step)
    ]
    held = len({step for _, steps in seen.on_disk for step in steps})
    check(
        not repeated and held >= 2,
        f"none of the {held} steps on disk ran again"
        + (f", but these did: {', '.join(repeated)}" if repeated else ""),
    )
    check(
        _begun(part_two, "write digest") >= 3,
        "the step that was killed in its middle ran again from its beginning",
    )
    check(seen.exits[2:] in ([0], [-15]), "SIGTERM ended the application in order")


def _check_stream(screen: Screen, visit: Visit, is_known: bool) -> None:
    """What holds for each stream, whatever happened to it. `is_known` is whether each try should
    write the same text."""
    check, viewer = screen.check, visit.viewer
    first, *others = visit.streams
    until = others[0].seen if others else 0
    check(
        first.method == "POST" and until > 0,
        f"the client's own request streamed up to position {until}; then it read on at "
        f"{others[0].path if others else 'no place'}",
    )
    places = ", ".join(stream.after or "none" for stream in others)
    check(
        all(stream.after == str(stream.seen) for stream in others),
        f"each time from behind the last position it had seen: {places}",
    )
    check(
        _is_whole(visit),
        f"positions 1 to {visit.positions[-1]}: none twice, and none missing that was not "
        "withdrawn meanwhile",
    )
    text, withdrawn = viewer.committed_text, viewer.withdrawn
    check(
        bool(withdrawn and text)
        and (not is_known or all(text.startswith(piece) for piece in withdrawn)),
        f"{' and '.join(str(count(piece)) for piece in withdrawn) or 'no'} words were withdrawn; "
        f"{count(text)} were written in the end",
    )
    check(text == _published(visit), "the streamed text is the published digest, to the letter")


def _is_whole(visit: Visit) -> bool:
    """Whether positions count from 1. Chunks that are withdrawn while a reader is away are not sent
    to it any more, only their withdrawal."""
    before = 0
    for event in visit.events:
        position = int(event.position)
        if position != before + 1 and not (position > before and isinstance(event, Rollback)):
            return False
        before = position
    return before > 0


def _answer(visit: Visit) -> bytes | None:
    response = visit.response
    return response.content if response is not None and response.status_code == 200 else None


def _published(visit: Visit) -> str | None:
    answer = _answer(visit)
    return None if answer is None else orjson.loads(answer)["published"]


def _begun(entries: list[Entry], step: str) -> int:
    return sum(entry.step == step and entry.what == "begins" for entry in entries)


def _pause(entries: list[Entry], first: str, second: str) -> float:
    """Seconds from the end of one step to the beginning of another; 0 if there was none."""
    end = [entry.at for entry in entries if entry.step == first and entry.what == "completed"]
    begin = [entry.at for entry in entries if entry.step == second and entry.what == "begins"]
    return begin[0] - end[0] if begin and end else 0


def _overlap(entries: list[Entry]) -> bool:
    """Whether the second of the parallel steps began before the first had ended."""
    both = [entry.what for entry in entries if entry.step in STEPS[:2]]
    return both[:2] == ["begins", "begins"]
