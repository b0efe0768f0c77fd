"""`client.js` without a browser: its parser and reducer, and every byte at which it can be cut."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.browser.scripted import CLIENT
from tests.requirements import need


def test_under_node(tmp_path: Path) -> None:
    node = shutil.which("node")
    need(node is not None, "node")
    # Node takes a .js file for CommonJS unless a package.json says otherwise; a browser does not.
    module = shutil.copy(CLIENT, tmp_path / "client.mjs")
    found = subprocess.run(
        [str(node), "--test", str(Path(__file__).with_name("client.test.mjs"))],
        env={**os.environ, "CLIENT": str(module)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.search(r"^\S* ?pass \d\d$", found.stdout, re.MULTILINE), found.stdout


def test_the_types_tell_of_what_there_is() -> None:
    exported = re.compile(r"^export (?:async )?(?:function|class) (\w+)", re.MULTILINE)
    there = exported.findall(CLIENT.read_text())
    assert len(there) >= 6
    assert sorted(there) == sorted(exported.findall(CLIENT.with_suffix(".d.ts").read_text()))
