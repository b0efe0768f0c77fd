"""`client.js` in a real browser, against a server that breaks connections."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.scripted import Site, serving
from tests.browser.scripts import ANSWERS, SCRIPTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

A, B = "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8", "e9d71f5ee7c92d6dc9e92ffdad17b8bd49418f98"
STORY = "Once b1 b2 a end 🦊"


@pytest.fixture(scope="module")
def served() -> Iterator[Site]:
    with serving(Site(SCRIPTS, ANSWERS)) as site:
        yield site


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    with browser.new_page() as tab:
        tab.set_default_timeout(10_000)
        tab.add_init_script("Math.random = () => 0.05")  # short pauses
        yield tab


@pytest.fixture
def site(served: Site) -> Site:
    served.forget()
    return served


@pytest.fixture
def page(tab: Page, site: Site) -> Page:
    tab.goto(f"{site.url}/page")
    tab.evaluate("sessionStorage.clear()")
    return tab


def watch(page: Page, url: str, options: str = "{}", how: str = "watch") -> Watched:
    """Follow a stream to its end. `options` are JavaScript."""
    return Watched(page.evaluate(f"url => {how}(url, {options})", url))


def begin(page: Page, url: str, options: str = "{}") -> None:
    page.evaluate(f"url => void (window.result = watch(url, {options}))", url)


def result(page: Page) -> Watched:
    return Watched(page.evaluate("window.result"))


def until_text(page: Page, text: str) -> None:
    is_told = "text => window.told.some(([name, value]) => name == 'text' && value.text == text)"
    page.wait_for_function(is_told, arg=text)


class Watched:
    """What the page was told, and the response that it got."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.told: list[tuple[str, Any]] = [(name, value) for name, value in found["told"]]
        self.status: int = found["status"]
        self.headers: dict[str, str] = found["headers"]
        self.body = bytes(found["bytes"])
        self.has_body: bool = found["hasBody"]

    def named(self, name: str) -> list[Any]:
        return [value for told, value in self.told if told == name]

    @property
    def chunks(self) -> list[Any]:
        return [chunk["data"] for chunk in self.named("data")]

    @property
    def texts(self) -> list[str]:
        return [value["text"] for value in self.named("text")]


def test_live_text_loses_exactly_what_was_rolled_back(page: Page, site: Site) -> None:
    found = watch(page, "/story")
    assert found.texts == [
        "Once ",
        "Once AA ",
        "Once AA b1 ",
        "Once AA b1 A2 ",
        "Once b1 ",
        "Once b1 b2 ",
        "Once b1 b2 a ",
        "Once b1 b2 a ",
        "Once b1 b2 a ",
        STORY,
        STORY,
    ]
    committed = [(value["committed"], value["provisional"]) for value in found.named("text")]
    assert committed[6:9] == [("", "Once b1 b2 a "), ("b1 b2 ", "Once a "), ("b1 b2 a ", "Once ")]
    assert committed[-1] == (STORY, "")
    assert found.named("rollback") == [{"hashedStepId": A}]
    assert found.named("commit") == [
        {"hashedStepId": B},
        {"hashedStepId": A},
        {"hashedStepId": None},
    ]
    assert found.told[0] == ("metadata", {"runId": site.runs[0].id, "runUrl": run_url(site)})
    assert len(found.named("metadata")) == 1
    assert (found.status, found.body, found.headers) == (200, b"told", {})


def run_url(site: Site) -> str:
    return f"{site.runs[0].base_url}{site.runs[0].path}"


def test_other_values_and_other_frames(page: Page) -> None:
    found = watch(page, "/events", "{ toText: (data) => data?.token ?? '' }")
    assert found.chunks == [{"token": 7}, None]
    assert found.texts[-1] == "7"
    assert [told for told in found.told if "." in told[0]] == [("durable.later", {"version": 2})]
    progress = {"current": 1, "total": 2, "message": "half", "hashedStepId": A}
    assert found.named("progress") == [progress]
    line = {"level": "info", "message": "odd", "data": {"n": 1}, "time": 5}
    assert found.named("log") == [{**line, "hashedStepId": None}]


def test_nothing_is_lost_or_repeated_however_connections_end(page: Page, site: Site) -> None:
    found = watch(page, "/torn")
    assert found.chunks == ["1", "2", "3ü", "one ", "two"]
    assert found.texts == ["1", "12", "123ü", "", "one ", "one two", "one two"]
    assert (found.status, found.body) == (200, b"whole")
    assert len(site.runs) == 1
    methods = [request.method for request in site.requests]
    assert methods == sorted(methods, reverse=True)  # POST, as often as it was cut too soon
    begun = [int(r.query_params.get("from", 0)) for r in site.seen("GET", "/wait")]
    assert len(begun) >= 5
    assert begun == sorted(begun)
    for request in site.requests:
        assert "last-event-id" not in request.headers
        assert "durable-client" not in request.headers
        assert len(request.headers.get("idempotency-key", "x" * 36)) == 36


def test_a_request_that_was_lost_is_repeated_with_its_key(page: Page, site: Site) -> None:
    found = watch(page, "/story?drop=2", "{ body: new Blob(['order']).stream() }")
    assert found.texts[-1] == STORY
    posts = site.seen("POST", "/story")
    assert len(posts) > 2
    assert len({request.headers["idempotency-key"] for request in posts}) == 1
    assert len(site.runs) == 1


def test_a_redirect_into_the_stream(page: Page, site: Site) -> None:
    assert watch(page, "/story?redirect").texts[-1] == STORY
    assert len(site.seen("GET", "/wait")) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "plain.test"])
def test_a_reloaded_page_finds_its_run_again(page: Page, site: Site, host: str) -> None:
    page.goto(f"{site.url.replace('127.0.0.1', host)}/page")
    assert page.evaluate("isSecureContext") is (host == "127.0.0.1")
    page.evaluate("start('/paused')")
    page.wait_for_function("document.querySelector('#text').textContent == 'Kept, wrong'")
    site.open("fail")
    page.wait_for_function("document.querySelector('#text').textContent == 'Kept, rig'")
    page.reload()
    page.wait_for_function("document.querySelector('#text').textContent == 'Kept, rig'")
    site.open("finish")
    page.wait_for_function("document.querySelector('#answer').textContent == '200 done'")
    assert page.text_content("#text") == "Kept, right"
    assert len(site.runs) == len(site.seen("POST", "/paused")) == 1
    assert page.evaluate("sessionStorage.length") == 0
    page.reload()
    assert page.evaluate("client.resumeStream('story')") is None


def test_a_follower_is_spared_what_was_rolled_back(page: Page, site: Site) -> None:
    begin(page, "/paused")
    until_text(page, "Kept, wrong")
    site.open("fail")
    until_text(page, "Kept, rig")
    site.open("finish")
    assert result(page).texts[-1] == "Kept, right"
    found = watch(page, site.runs[0].path, how="follow")
    assert found.chunks == ["Kept, ", "rig", "ht"]
    assert (found.texts[-1], found.body) == ("Kept, right", b"done")


def test_cancelling(page: Page, site: Site) -> None:
    begin(page, "/paused")
    until_text(page, "Kept, wrong")
    cancel = "async (url) => (await client.cancelRun(url)).status"
    url = page.evaluate("told[0][1].runUrl")
    assert page.evaluate(cancel, url) == 200
    found = result(page)
    assert (found.status, found.body) == (409, b'{"error":"cancelled"}')
    assert page.evaluate(cancel, url) == 409


def test_aborting_ends_the_wait_and_not_the_run(page: Page, site: Site) -> None:
    page.evaluate("window.stop = new AbortController()")
    begin(page, "/paused", "{ signal: stop.signal, storageKey: 'kept' }")
    until_text(page, "Kept, wrong")
    why = page.evaluate("stop.abort(), result.catch((error) => error.name)")
    assert why == "AbortError"
    site.open("fail")
    site.open("finish")
    resumed = "client.resumeStream('kept').then((response) => response.text())"
    assert page.evaluate(resumed) == "done"
    assert len(site.runs) == 1
    assert page.evaluate("watch('/story', { signal: stop.signal }).catch((e) => e.name)") == why
    assert len(site.seen("POST", "/story")) == 0


def test_aborting_between_two_tries(page: Page) -> None:
    page.evaluate("Math.random = () => 1")  # 500, 1000 … milliseconds
    began = page.evaluate("performance.now()")
    options = "{ signal: AbortSignal.timeout(100) }"
    why = page.evaluate(f"watch('http://127.0.0.1:9/', {options}).catch((error) => error.name)")
    assert why == "TimeoutError"
    assert page.evaluate("performance.now()") - began < 450


def test_answers_that_are_not_streamed(page: Page, site: Site) -> None:
    refused = watch(page, "/refused")
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert refused.body == b'{"error":"who are you"}'
    stream = watch(page, "/own_stream")
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (stream.body, stream.told) == (b"data: mine\n\n", [])
    wrong = watch(page, site.url + "/wait?runId=01J&token=x", how="follow")
    assert (wrong.status, wrong.told) == (401, [])
    assert watch(page, "/nowhere").status == 404
    page.evaluate("sessionStorage.setItem('old', '/wait?runId=01J&token=x')")
    assert page.evaluate("client.resumeStream('old').then((response) => response.status)") == 401
    assert page.evaluate("client.resumeStream('old')") is None


def test_what_is_asked_again_and_what_is_not(page: Page, site: Site) -> None:
    assert watch(page, "/busy").texts[-1] == STORY
    assert len(site.seen("POST", "/busy")) == 3
    answers = {"parked": 503, "executed": 503, "own_failure": 503, "always_busy": 429}
    for name, status in answers.items():
        assert watch(page, f"/{name}").status == status
        assert len(site.seen("POST", f"/{name}")) == 1
    assert watch(page, "/busy", "{ idempotencyKey: false }").texts[-1] == STORY


def test_responses_of_every_kind(page: Page) -> None:
    empty = watch(page, "/no_content")
    assert (empty.status, empty.has_body, empty.headers) == (204, False, {"x-own": "yes"})
    same = watch(page, "/not_modified")
    assert (same.status, same.has_body, same.headers) == (304, False, {"etag": '"1"'})
    binary = watch(page, "/binary")
    assert (binary.status, binary.body) == (201, bytes(range(256)))
    assert binary.headers == {"content-type": "application/octet-stream", "x-many": "1, 2"}
    assert watch(page, "/packed").body == b"unpacked"
    failed = watch(page, "/failed")
    assert (failed.status, failed.body) == (503, b'{"error":"parked"}')


@pytest.mark.parametrize("cors", ["open", "hidden"])
def test_another_origin(page: Page, site: Site, cors: str) -> None:
    begin(page, f"{site.other_url}/cut_late?cors={cors}")
    until_text(page, "x-")
    site.open("cut")
    found = result(page)
    assert (found.chunks, found.texts[-1], found.body) == (["x", "-", "y"], "x-y", b"done")
    told = [metadata["runUrl"] for metadata in found.named("metadata")]
    assert told == ([run_url(site)] if cors == "open" else [None, run_url(site)])
    assert [request.method for request in site.requests] == ["OPTIONS", "POST", "GET"]
    assert "after" not in site.requests[-1].query_params


def test_another_origin_that_allows_no_key(page: Page, site: Site) -> None:
    url = f"{site.other_url}/cut_late?cors=simple"
    begin(page, url, "{ idempotencyKey: false, body: 'plain' }")
    until_text(page, "x-")
    site.open("cut")
    found = result(page)
    assert (found.chunks, found.body) == (["x", "-", "y"], b"done")
    assert [request.method for request in site.requests] == ["POST", "GET"]
    cancel = "async (url) => (await client.cancelRun(url)).status"
    assert page.evaluate(cancel, found.named("metadata")[-1]["runUrl"]) == 409


def test_another_origin_whose_stream_breaks_before_it_told_its_url(page: Page, site: Site) -> None:
    url = f"{site.other_url}/cut_early?cors=hidden"
    begin(page, url)
    until_text(page, "x")
    site.open("cut")
    found = result(page)
    assert (found.chunks, found.body) == (["x", "y"], b"done")
    posts = site.seen("POST", "/cut_early")
    assert [request.headers.get("last-event-id") for request in posts] == [None, "1"]
    assert len({request.headers["idempotency-key"] for request in posts}) == len(site.runs) == 1

    options = "{ idempotencyKey: false }"  # and then nothing is left to go on with
    why = page.evaluate(f"url => watch(url, {options}).catch((error) => error.name)", url)
    assert why == "TypeError"


def test_a_lost_request_without_a_key_is_not_repeated(page: Page, site: Site) -> None:
    options = "{ idempotencyKey: false }"
    why = page.evaluate(f"watch('/story?drop=9', {options}).catch((error) => error.name)")
    assert why == "TypeError"
    assert len(site.seen("POST", "/story")) <= 2  # Chromium repeats what a kept connection lost


def test_giving_up(page: Page) -> None:
    options = "{ giveUpAfter: 50 }"
    why = page.evaluate(f"watch('http://127.0.0.1:9/', {options}).catch((error) => error.name)")
    assert why == "TypeError"


def test_mistakes_are_told_at_once(page: Page) -> None:
    for call in ("'http://'", "'/story', { method: 'GET', body: 'x' }"):
        why = page.evaluate(f"client.fetchWithStream({call}).catch((error) => error.name)")
        assert why == "TypeError"
    thrown = "{ onData: () => { throw new RangeError('mine') } }"
    assert page.evaluate(f"watch('/story', {thrown}).catch((error) => error.message)") == "mine"


def test_silence_is_broken_off_and_heartbeats_are_no_silence(page: Page, site: Site) -> None:
    page.clock.install()  # for good: this is the last test
    begin(page, "/silent")
    until_text(page, "said ")
    page.clock.fast_forward(44_000)
    site.open("beat")
    page.wait_for_function("told.some(([name]) => name == 'durable.beat')")
    page.clock.fast_forward(44_000)
    time.sleep(0.1)
    assert len(site.requests) == 1
    page.clock.fast_forward(2_000)
    page.clock.resume()
    for _ in range(100):
        if len(site.requests) == 2:
            break
        page.wait_for_timeout(20)
    site.open("speak")
    found = result(page)
    assert (found.chunks, found.body) == (["said ", "more"], b"done")
    assert len(site.requests) == 2
