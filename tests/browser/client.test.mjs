// The parts of client.js without a browser: `CLIENT=… node --test client.test.mjs`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const { EventParser, LiveText, fetchWithStream, followRun, resumeStream } = await import(
  pathToFileURL(process.env.CLIENT)
);
Math.random = () => 0; // no pauses

const encode = (text) => new TextEncoder().encode(text);
const parse = (...pieces) => {
  const parser = new EventParser();
  return pieces.flatMap((piece) => parser.push(piece));
};

test("events are the same wherever the bytes are cut", () => {
  const bytes = encode(
    '\uFEFF: heartbeat\n\nid: 1\nevent: e\ndata: {"a":"ü🦊"}\n\r\ndata:x\r\ndata:  y\r\r\n' +
      "id\nevent:\nretry: 5\ndata\n\nevent: none\n\ndata: a:b\n\ndata: unfinished",
  );
  const events = [
    { id: "1", event: "e", data: '{"a":"ü🦊"}' },
    { id: undefined, event: "message", data: "x\n y" },
    { id: "", event: "message", data: "" },
    { id: undefined, event: "message", data: "a:b" },
  ];
  for (let cut = 0; cut <= bytes.length; cut += 1) {
    assert.deepEqual(parse(bytes.subarray(0, cut), bytes.subarray(cut)), events, `at ${cut}`);
  }
  assert.deepEqual(parse(...Array.from(bytes, (byte) => Uint8Array.of(byte))), events);
});

test("a large frame in many pieces takes no quadratic time", () => {
  const piece = encode("x".repeat(1000));
  const began = performance.now();
  const [{ data }] = parse(encode("data: "), ...Array(20_000).fill(piece), encode("\n\n"));
  assert.equal(data.length, 20_000_000);
  assert.ok(performance.now() - began < 2000);
});

test("text is that of a list of chunks, whatever is committed and rolled back", () => {
  let seed = 1;
  const below = (limit) => (seed = (seed * 48271) % 2147483647) % limit;
  for (let round = 0; round < 200; round += 1) {
    const live = new LiveText();
    let chunks = [];
    for (let turn = 0; turn < 40; turn += 1) {
      const hashedStepId = [null, "a", "b", "c"][below(4)];
      const mine = (chunk) => chunk.step === hashedStepId && !chunk.committed;
      const action = below(6);
      if (action === 0) {
        live.commit({ hashedStepId });
        chunks.filter(mine).forEach((chunk) => (chunk.committed = true));
      } else if (action === 1) {
        live.rollback({ hashedStepId });
        chunks = chunks.filter((chunk) => !mine(chunk));
      } else {
        live.push({ data: `${turn} `, hashedStepId });
        chunks.push({ text: `${turn} `, step: hashedStepId, committed: false });
      }
      const text = (some) => some.map((chunk) => chunk.text).join("");
      assert.equal(live.text, text(chunks));
      assert.equal(live.committed, text(chunks.filter((chunk) => chunk.committed)));
      assert.equal(live.provisional, text(chunks.filter((chunk) => !chunk.committed)));
      assert.equal(text(live.parts), live.text);
    }
  }
});

const RUN = "http://test/wait?runId=1&token=t";
const step = (hashedStepId) => ({ hashedStepId });
const chunk = (data, hashedStepId) => ["stream", { data, hashedStepId }];
const LOG = [
  chunk("out ", undefined),
  chunk("a1 ", "a"),
  chunk("b1 ", "b"),
  ["rollback", step("a")],
  chunk("a2 ü ", "a"),
  ["commit", step("b")],
  ["commit", step("a")],
  ["commit", step(null)],
  ["response", { response: { statusCode: 200, headers: {}, body: "done" } }],
];
const frame = (event, data, id) =>
  `${id === undefined ? "" : `id: ${id}\n`}event: inngest.${event}\ndata: ${JSON.stringify(data)}\n\n`;

/** The stream after a position. Who comes later is spared chunk 2, which was rolled back. */
function streamAfter(position) {
  const isTold = (_, index) => index >= position && (position === 0 || index !== 1);
  const frames = LOG.map(([event, data], index) => frame(event, data, index + 1));
  return encode(frame("metadata", { runId: "1" }, position) + frames.filter(isTold).join(": \n\n"));
}

/** A response whose connection breaks, or ends in order, after its bytes. */
function cutResponse(bytes, breaks, headers = { "durable-run-url": RUN }) {
  const body = new ReadableStream({
    pull(controller) {
      if (bytes.length) controller.enqueue(bytes);
      else if (breaks) controller.error(new TypeError("network error"));
      else controller.close();
      bytes = bytes.subarray(bytes.length);
    },
  });
  return new Response(body, { headers: { "content-type": "text/event-stream", ...headers } });
}

/** Follow a run over a first connection that is cut, and a second one. */
async function follow(cut, breaks) {
  const requests = [];
  const told = [];
  const fetch = async (url) => {
    const position = Number(new URL(url).searchParams.get("from") ?? 0);
    requests.push(position);
    const bytes = streamAfter(position);
    return requests.length === 1
      ? cutResponse(bytes.subarray(0, cut), breaks)
      : cutResponse(bytes, false);
  };
  let text = "";
  const response = await fetchWithStream("http://test/", {
    fetch,
    onData: ({ data }) => void told.push(data),
    onCommit: ({ hashedStepId }) => void told.push(`commit ${hashedStepId}`),
    onRollback: ({ hashedStepId }) => void told.push(`rollback ${hashedStepId}`),
    onText: (now) => (text = now),
  });
  return { requests, told, text, body: await response.text() };
}

test("nothing is lost or repeated wherever a connection is cut", async () => {
  const length = streamAfter(0).length;
  for (let cut = 0; cut <= length; cut += 1) {
    const { requests, told, text, body } = await follow(cut, cut % 2 === 0);
    assert.equal(text, "out b1 a2 ü ", `at ${cut}`);
    assert.equal(body, "done");
    assert.ok(requests.length <= 2);
    const all = [
      "out ",
      "a1 ",
      "b1 ",
      "rollback a",
      "a2 ü ",
      "commit b",
      "commit a",
      "commit null",
    ];
    const wasSpared = !told.includes("a1 ");
    assert.ok(!wasSpared || requests[1] === 1);
    assert.deepEqual(told, wasSpared ? all.filter((one) => one !== "a1 ") : all, `at ${cut}`);
  }
});

test("a server that begins earlier than it was asked to is skipped over", async () => {
  const whole = streamAfter(0);
  const half = whole.subarray(0, whole.length / 2);
  const streams = [cutResponse(half, true, {}), cutResponse(whole, false, {})];
  const sent = [];
  const told = [];
  await fetchWithStream("http://test/", {
    idempotencyKey: "key",
    fetch: async (_, { headers }) => (sent.push(headers.get("last-event-id")), streams.shift()),
    onData: ({ data }) => void told.push(data),
  });
  assert.deepEqual(told, ["out ", "a1 ", "b1 ", "a2 ü "]);
  assert.equal(sent[0], null);
  assert.ok(Number(sent[1]) > 0);
});

test("positions that are no numbers are given back as they are", async () => {
  const asked = [];
  const first = frame("metadata", { runId: "1" }, "57.3") + frame("stream", { data: "x" }, "57.10");
  const answer = frame("response", LOG.at(-1)[1], "58");
  const streams = [first, frame("metadata", { runId: "1" }, "57.10") + answer];
  await followRun(RUN, {
    method: "POST",
    body: "of the options with which it was started",
    fetch: async (url, { method, body }) => {
      asked.push([method, body, new URL(url).searchParams.get("from")]);
      return cutResponse(encode(streams.shift()), true);
    },
  });
  assert.deepEqual(asked, [
    ["GET", null, null],
    ["GET", null, "57.10"],
  ]);
});

test("frames that hold no JSON break the connection, and streams of others the wait", async () => {
  const streams = [encode("event: inngest.metadata\ndata: <html>\n\n"), streamAfter(0)];
  const fetch = async () => cutResponse(streams.shift() ?? encode("data: x\n\n"), false);
  assert.equal(await (await followRun(RUN, { fetch })).text(), "done");
  await assert.rejects(followRun(RUN, { fetch }), /not a durable endpoint's/);
});

test("streams that bring nothing for too long are given up", { timeout: 2000 }, async () => {
  let requests = 0;
  const bytes = encode(frame("metadata", { runId: "1" }, 0));
  const fetch = async () => ((requests += 1), cutResponse(bytes, false));
  Math.random = () => 0.01;
  await assert.rejects(followRun(RUN, { fetch, giveUpAfter: 30 }), /ended without a response/);
  Math.random = () => 0;
  assert.equal(requests, 4); // at once, then after 10 and 20 ms, and not after 40
});

test("whatever is new makes patient again", async () => {
  Math.random = () => 0.01; // 5 ms after each connection: 45 in all
  const fetch = async (url) => {
    const position = Number(new URL(url).searchParams.get("from") ?? 0);
    const [event, data] = LOG[position];
    const next = frame("metadata", { runId: "1" }, position) + frame(event, data, position + 1);
    return cutResponse(encode(next), true);
  };
  assert.equal((await followRun(RUN, { fetch, giveUpAfter: 8 })).status, 200);
  Math.random = () => 0;
});

test("callbacks are waited for, and what they throw is thrown", async () => {
  const order = [];
  const fetch = async () => cutResponse(streamAfter(0), false);
  const onData = async ({ data }) => {
    order.push(`begin ${data}`);
    await new Promise((resolve) => setTimeout(resolve, 1));
    order.push(`end ${data}`);
  };
  await followRun(RUN, { fetch, onData });
  assert.deepEqual(order.slice(0, 4), ["begin out ", "end out ", "begin a1 ", "end a1 "]);
  const thrown = new Error("mine");
  for (const name of ["onMetadata", "onData", "onCommit", "onRollback", "onText"]) {
    await assert.rejects(followRun(RUN, { fetch, [name]: () => Promise.reject(thrown) }), thrown);
  }
});

test("after an abort nothing more is told", async () => {
  const stop = new AbortController();
  const told = [];
  const onData = ({ data }) => (told.push(data), stop.abort());
  const fetch = async () => cutResponse(streamAfter(0), false);
  const { signal } = stop;
  await assert.rejects(followRun(RUN, { fetch, onData, signal }), { name: "AbortError" });
  assert.deepEqual(told, ["out "]);
});

test("without a storage nothing is remembered, and nothing breaks", async () => {
  const fetch = async () => cutResponse(streamAfter(0), false);
  assert.equal((await followRun(RUN, { fetch, storageKey: "key" })).status, 200);
  assert.equal(resumeStream("key"), null);
});
