"""The errors that an engine raises and an SDK hands on."""

from __future__ import annotations

from durable_endpoints.protocol import places


class DurableEndpointsError(Exception):
    """The root of every exception this package raises.

    `str()` says what happened and what to do, and in a last line where: the line of your code that
    called. Clients never get to see that line; `explanation` is the text without it.
    """

    where: str = ""
    """The line of the user's code, as in "/srv/app.py:41, in report"; empty if it is unknown."""

    def __init__(self, *args: object, where: str | None = None) -> None:
        """`where` is found out if it is not given."""
        super().__init__(*args)
        self.where = places.caller() if where is None else where

    @property
    def explanation(self) -> str:
        """What happened and what to do, without the place."""
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.explanation}\n  at {self.where}" if self.where else self.explanation


class ConfigurationError(DurableEndpointsError):
    """A setting is wrong, or a piece is missing: when the application is put together or starts,
    and when a decorated handler is called without a middleware. The message names the argument or
    the variable, and says what to write instead."""


class LimitError(DurableEndpointsError):
    """A limit of the settings was passed: raised by the step or the `stream.push` that would go
    beyond it, and never retried. The message names the limit and the setting: keep less, or raise
    the setting."""


class EngineError(DurableEndpointsError):
    """The engine could not do what was asked of it. Nothing is lost by that: in a handler the run
    is suspended, and the client gets a 503; elsewhere, try again."""


class StorageError(EngineError):
    """The store refused or failed: a full disk, a read-only, damaged or locked database. The
    message names the file and the remedy."""


class EngineClosedError(EngineError):
    """The engine is shutting down, or has not been started: send events, say, while the application
    runs."""


class ForeignServerError(EngineError):
    """The server does not speak the wire that it was asked on: it is another kind of engine. The
    SDK deals with it; a handler does not see it."""


class LostRunError(EngineError):
    """This execution no longer holds its run: another one took it over, or the run has ended. The
    SDK deals with it; a handler does not see it."""
