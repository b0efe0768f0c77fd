"""Sends a file to an endpoint, and shows live what comes of it.

    python examples/watch.py http://localhost:8000/digests README.md

See `digest.py` and `csv_import.py` for endpoints to send something to. A server that is killed and
started again meanwhile is no reason to stop: this goes on where it was.
"""

from __future__ import annotations

import mimetypes
import sys
from pathlib import Path

from durable_endpoints.client import Chunk, Log, Progress, Rollback, fetch_with_stream_sync


def show_progress(progress: Progress) -> None:
    print(f"{progress.current} of {progress.total}: {progress.message or ''}", flush=True)


def show_log(log: Log) -> None:
    print(f"{log.level}: {log.message}", flush=True)


def show_text(chunk: Chunk) -> None:
    print(chunk.data, end="", flush=True)


def show_rollback(rollback: Rollback) -> None:
    print("(That try failed: what it told and wrote does not count.)", flush=True)


def main(url: str, file: str) -> None:
    response = fetch_with_stream_sync(
        url,
        method="POST",
        content=Path(file).read_bytes(),
        headers={"content-type": mimetypes.guess_type(file)[0] or "text/plain"},
        on_progress=show_progress,
        on_log=show_log,
        on_data=show_text,
        on_rollback=show_rollback,
    )
    print(f"\n{response.status_code}: {response.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
