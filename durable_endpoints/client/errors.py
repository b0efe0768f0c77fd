"""What can go wrong in a stream beside the network, and which errors are the network's."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from durable_endpoints.protocol.errors import DurableEndpointsError

_HOPELESS = {"UnsupportedProtocol", "LocalProtocolError"}
"""Transport errors that are the caller's own: a URL without http, a header that cannot be sent."""


class StreamError(DurableEndpointsError):
    """The server sent what is no durable stream, or ended its streams without a response until
    patience was over; or the stream was asked for its response before its end."""


def is_lost_connection(error: BaseException) -> bool:
    """Whether the same request may work on another connection.

    Told by the name of the class, because httpx and httpx2 have unrelated classes of one name. A
    certificate that is not trusted will not be trusted in a second either.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if "TransportError" not in names or names & _HOPELESS:
        return False
    return not any(isinstance(e, ssl.SSLCertVerificationError) for e in _with_causes(error))


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
