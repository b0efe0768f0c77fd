from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from durable_endpoints.protocol.messages import StoredRequest, StoredResponse

headers = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=5)


@given(st.integers(100, 599), headers, st.binary(max_size=200))
def test_responses_round_trip(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    response = StoredResponse(status, headers, body)
    assert StoredResponse.unpack(response.pack()) == response


@given(headers, st.text(max_size=30), st.binary(max_size=30), st.binary(max_size=200))
def test_requests_round_trip(
    headers: list[tuple[bytes, bytes]], path: str, query: bytes, body: bytes
) -> None:
    path = path.encode("utf-8", "replace").decode()
    request = StoredRequest(
        method="POST",
        scheme="https",
        http_version="1.1",
        path=path,
        raw_path=path.encode(),
        root_path="/api",
        query_string=query,
        headers=headers,
        client=("127.0.0.1", 5000),
        server=("::1", None),
        body=body,
    )
    assert StoredRequest.unpack(request.pack()) == request
    bare = request._replace(client=None, server=None)
    assert StoredRequest.unpack(bare.pack()) == bare
