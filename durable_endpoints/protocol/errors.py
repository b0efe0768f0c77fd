"""The errors that an engine raises and an SDK hands on."""

from __future__ import annotations


class DurableEndpointsError(Exception):
    """The root of every exception this package raises."""


class ConfigurationError(DurableEndpointsError):
    """A setting is wrong, or a piece is missing. The message says what to write instead."""


class LimitError(DurableEndpointsError):
    """A limit of the settings was passed. The message names the limit and the setting."""


class EngineError(DurableEndpointsError):
    """The engine could not do what was asked of it."""


class StorageError(EngineError):
    """The store refused or failed: a full disk, a read-only, damaged or locked database."""


class EngineClosedError(EngineError):
    """The engine is shutting down, or has not been started."""


class LostRunError(EngineError):
    """This execution no longer holds its run: another one took it over, or the run has ended."""
