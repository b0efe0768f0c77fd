"""A page that shows a text while it is written, and loses none of it.

    uvicorn examples.streaming:app
    open http://localhost:8000

The writer breaks off once in the middle: watch what it had written disappear, and be written again.
Reload the page, or kill the server and start it again, while it writes: the text goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.responses import HTMLResponse

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, step, stream

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())

broken: set[str] = set()


async def model(topic: str) -> AsyncIterator[str]:
    """Stands for a language model: `stream.pipe` takes OpenAI's and Anthropic's streams as well."""
    for number, word in enumerate(
        f"All that is to be known about {topic}, in a few words.".split()
    ):
        yield f"{word} "
        await asyncio.sleep(0.15)
        if number == 6 and topic not in broken:
            broken.add(topic)
            raise ConnectionError("the model broke off (this example made that up)")


@app.post("/write/{topic}")
@endpoint(cancellable=True)
async def write(topic: str) -> dict[str, str]:
    text = await step.run("write", lambda: stream.pipe(model(topic)))
    await step.sleep("let it settle", "1s")
    ending = await step.run("end", lambda: stream.pipe(["That", " is", " all."]))
    return {"text": text + ending}


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse("""<!doctype html>
<title>Streaming</title>
<button id="write">Write about whales</button>
<p><span id="committed"></span><span id="provisional" style="color: gray"></span></p>
<p id="answer"></p>
<script type="module">
  import { fetchWithStream, resumeStream } from "/wait/client.js";

  const element = (id) => document.getElementById(id);
  const options = {
    storageKey: "writing",
    onText(text, { committed, provisional }) {
      element("committed").textContent = committed;
      element("provisional").textContent = provisional;
    },
  };
  const show = async (response) => {
    element("answer").textContent = `${response.status}: ${await response.text()}`;
  };

  const underWay = resumeStream("writing", options);  // after a reload
  if (underWay) show(await underWay);
  element("write").onclick = async () => {
    show(await fetchWithStream("/write/whales", { ...options, method: "POST" }));
  };
</script>
""")
