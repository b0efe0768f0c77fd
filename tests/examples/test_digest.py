"""A document is digested by `examples/digest.py`, and watched."""

from __future__ import annotations

import json
from pathlib import Path

from tests.chaos.process import Server
from tests.examples.first_lines import commands, type_into_shell

DOCUMENT = """# Whales
Whales are large.
## Eating
They eat krill, and much of it.
## Singing
They sing.
## Swimming
They swim.
"""


def test_a_chapter_that_fails_is_summarized_again_and_the_text_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(DOCUMENT)
    with Server(tmp_path, app="examples.digest:app", alive="/docs") as server:
        shown = type_into_shell(server, commands("digest"))
    head, _, answer = shown.rpartition("\n200: ")
    digest = json.loads(answer)
    text = (
        "Whales: Whales are large. …\nEating: They eat krill, and much of it. …\n"
        "Singing: They sing. …\nSwimming: They swim. …\n"
    )
    assert digest == {"chapters": 4, "words": 14, "text": text}
    assert head.endswith(text), "what was streamed is what was answered"
    *lines, last = head.removesuffix(text).splitlines()
    assert [line[:7] for line in lines if " of " in line] == ["1 of 4:", "2 of 4:", "3 of 4:"]
    assert last == "4 of 4: Singing is summarized", "the one that was overloaded"
    assert head.count("That try failed") == 1
