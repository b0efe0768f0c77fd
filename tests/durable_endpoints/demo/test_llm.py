"""The demo's language model: its stream read from bytes, a real server of one, and what can be
wrong with it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from durable_endpoints.demo.llm import Llm, LlmError, texts
from durable_endpoints.errors import NonRetriableError, TruncatedStreamError
from tests.durable_endpoints.client.server import answer, serving
from tests.durable_endpoints.demo.running import demo
from tests.requirements import need

DONE = b"data: [DONE]\n\n"


def said(text: str | None, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return frame({"choices": [choice]})


def frame(data: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(data)


async def read(body: bytes, size: int = 1_000_000) -> list[str]:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    async with aclosing(texts(pieces())) as answer:
        return [text async for text in answer]


async def write(llm: Llm) -> str:
    async with aclosing(llm.write("Say it.")) as pieces:
        return "".join([piece async for piece in pieces])


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 7, 1_000_000])
async def test_the_text_comes_whole_however_the_bytes_are_cut(size: int) -> None:
    role = frame({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
    usage = frame({"choices": [], "usage": {"total_tokens": 3}})
    words = said("Grü") + b": sign of life\n\n" + said("ße\u2028") + said(None, "stop")
    assert await read(role + words + usage + DONE, size) == ["Grü", "ße\u2028"]


@pytest.mark.anyio
@pytest.mark.parametrize("end", [said("", "length"), DONE])
async def test_one_sign_of_the_end_is_enough(end: bytes) -> None:
    assert await read(said("a") + end) == ["a"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        pytest.param(said("a"), TruncatedStreamError, "before its end", id="truncated"),
        pytest.param(b"", TruncatedStreamError, "before its end", id="nothing"),
        pytest.param(DONE, LlmError, "is empty", id="an empty answer"),
        pytest.param(b"data: oops\n\n", LlmError, "'oops' is no chunk", id="no JSON"),
        pytest.param(frame([1]), LlmError, "is no chunk", id="no object"),
        pytest.param(said(7), LlmError, "is no chunk", id="no text"),  # type: ignore[arg-type]
        pytest.param(
            frame({"error": {"message": "overloaded"}}), LlmError, "^overloaded$", id="error"
        ),
        pytest.param(frame({"error": "overloaded"}), LlmError, "^overloaded$", id="plain error"),
    ],
)
async def test_what_is_no_whole_answer(body: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await read(body)


@pytest.mark.anyio
async def test_what_is_asked() -> None:
    stream = answer(200, said("yes") + DONE, "Content-Type: text/event-stream; charset=utf-8")
    with serving(lambda asked: stream) as server:
        assert await write(Llm(f"{server.url}/v1/", "m", "secret")) == "yes"
        assert await write(Llm(f"{server.url}/v1", "m")) == "yes"
    first, second = server.asked
    assert (first.method, first.path) == (second.method, second.path)
    assert (first.method, first.path) == ("POST", "/v1/chat/completions")
    assert first.headers["authorization"] == "Bearer secret"
    assert "authorization" not in second.headers
    message = {"role": "user", "content": "Say it."}
    assert orjson.loads(first.body) == {"model": "m", "messages": [message], "stream": True}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("response", "error", "message"),
    [
        pytest.param(
            answer(404, orjson.dumps({"error": {"message": "no model m"}})),
            NonRetriableError,
            "answered 404 X: no model m",
            id="an unknown model",
        ),
        pytest.param(answer(404, b"<p>?"), NonRetriableError, "404 X: <p>", id="a wrong path"),
        pytest.param(
            answer(200, b"<p>Hello", "Content-Type: text/html"),
            NonRetriableError,
            "answered text/html, not an event stream",
            id="another page",
        ),
        pytest.param(answer(429), LlmError, "429 X: without a reason", id="a limit"),
        pytest.param(answer(503), LlmError, "503 X", id="out of order"),
        pytest.param(b"", LlmError, "/v1/chat/completions: .*disconnected", id="a cut connection"),
    ],
)
async def test_an_answer_that_is_no_stream(
    response: bytes, error: type[Exception], message: str
) -> None:
    with serving(lambda asked: response) as server, pytest.raises(error, match=message):
        await write(Llm(f"{server.url}/v1", "m"))


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["localhost:80/v1", "ftp://x/v1", "http://[::1", ""])
async def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(NonRetriableError, match="is no URL to ask"):
        await write(Llm(url, "m"))


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["sec\nret", "secr\u00e9t"])
async def test_a_key_that_cannot_be_sent_is_shown_nowhere(key: str) -> None:
    with serving(lambda asked: answer(401)) as server:
        llm = Llm(server.url, "m", key)
        with pytest.raises(NonRetriableError) as raised:
            await write(llm)
    assert str(raised.value).endswith(": the key cannot be sent in a header")
    assert "sec" not in repr(llm)


@pytest.fixture
def llmock() -> Iterator[str]:
    need(find_spec("llmock") is not None, "llmock")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"--port {port} --response-style varied --stream-chunk-delay-ms 5".split()
    code = "from llmock.cli import app; app()"
    program = [sys.executable, "-c", code, "serve", *options, "--log-level", "warning"]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url)
        yield f"{url}/v1"
        process.send_signal(signal.SIGKILL)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            httpx.get(url, timeout=1)
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_language_model_writes_the_digest(tmp_path: Path, llmock: str) -> None:
    done = demo("--llm-url", llmock, "--model", "some-model", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"some-model, {llmock}" in done.stdout
    assert done.stdout.count("the streamed text is the published digest, to the letter") == 2
    assert "NOT " not in done.stdout


def test_a_refused_key_ends_the_demo_with_its_reason(tmp_path: Path) -> None:
    refusal = answer(401, orjson.dumps({"error": {"message": "Incorrect API key provided"}}))
    with serving(lambda asked: refusal) as server:
        url = f"{server.url}/v1"
        done = demo("--llm-url", url, "--model", "m", folder=tmp_path, OPENAI_API_KEY="secret")
    assert done.returncode == 1
    _, _, message = done.stdout.partition("The demo failed: ")
    assert message == (
        "the handler answered 502 Bad Gateway: "
        f"{url}/chat/completions answered 401 X: Incorrect API key provided\n"
    )
    assert [asked.headers["authorization"] for asked in server.asked] == ["Bearer secret"]
    assert "secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == [], "something was left behind"


def test_a_server_that_is_not_there_ends_the_demo_with_its_url(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        done = demo("--llm-url", url, "--model", "m", folder=tmp_path)
    assert done.returncode == 1
    assert f"{url}/chat/completions: " in done.stdout.partition("The demo failed: ")[2]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("options", [["--llm-url", "http://x/v1"], ["--model", "m"]])
def test_a_url_and_a_model_go_together(tmp_path: Path, options: list[str]) -> None:
    done = demo(*options, folder=tmp_path)
    assert done.returncode == 2
    assert "--llm-url and --model go together" in done.stderr
