"""The last things of many, by their keys."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

T = TypeVar("T")


class Recent(OrderedDict[str, T]):
    """A dictionary that holds so many things at the most, and forgets the oldest ones."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: str, value: T) -> None:
        """Put something in, and whatever is too much out."""
        self[key] = value
        while len(self) > self._most:
            self.popitem(last=False)
