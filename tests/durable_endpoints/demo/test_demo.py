"""`durable-endpoints demo`: the whole of it, as a newcomer runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from durable_endpoints.demo import digest
from durable_endpoints.demo.driver import TEXT
from tests.durable_endpoints.demo.running import demo


def test_the_demo_proves_what_it_says(tmp_path: Path) -> None:
    done = demo(folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill -9" in done.stdout
    assert "none of the 3 steps on disk ran again" in done.stdout
    assert "NOT " not in done.stdout
    told = re.findall(r"(withdrawn|committed): (\d+) words", done.stdout)
    kinds = [kind for kind, _ in told]
    assert kinds == ["withdrawn", "committed", "withdrawn", "withdrawn", "committed", "committed"]
    assert all(int(words) > 5 for _, words in told)
    assert "\x1b[" not in done.stdout, "colours, though this is no terminal"
    assert list(tmp_path.iterdir()) == [], "something was left behind"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="an empty file"),
        pytest.param("Grüße! Ça va? \N{SNOWMAN}".encode("latin-1", "replace"), id="not UTF-8"),
    ],
)
def test_the_demo_digests_any_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "text"
    file.write_bytes(content)
    done = demo(str(file), "--keep", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (database,) = tmp_path.glob("durable-demo-*/endpoints.db")
    assert f"runs list --database {database}" in done.stdout


def test_a_file_that_is_too_large_is_refused_with_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x" * (4 * 1024 * 1024 + 1))
    done = demo(str(file), folder=tmp_path)
    assert done.returncode == 1
    assert "the demo sends at most 4,194,304" in done.stdout


def test_the_text_of_the_package_is_real_and_its_licence_is_named() -> None:
    text = TEXT.read_text("ascii")
    assert len(text) > 20_000
    assert digest.count_words(text)["words"] > 8_000
    assert len(digest.pick_key_sentences(text)) == 3
    assert "CC0" in TEXT.with_name("SOURCE.md").read_text("ascii")


def test_a_text_without_a_full_stop_is_one_sentence() -> None:
    assert digest.pick_key_sentences("word " * 1_000_000) == [("word " * 100)[:500]]
