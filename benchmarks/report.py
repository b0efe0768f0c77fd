"""Tables of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells), flush=True)


def spread(values: Sequence[float], pattern: str = "{:.2f}") -> str:
    """The median, and between which values it lies."""
    low, high = pattern.format(min(values)), pattern.format(max(values))
    return f"{pattern.format(median(values))} [{low}-{high}]"


def percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
