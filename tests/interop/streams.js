// An application of durable endpoints made with Inngest's SDK, which streams. Takes the URL of the
// server that keeps its runs, and prints its own.

import { Inngest, NonRetriableError, step } from "inngest";
import { stream } from "inngest/experimental/durable-endpoints";
import { createEndpointServer, endpointAdapter } from "inngest/node";

const tries = {};

function isFirst(what) {
  tries[what] = (tries[what] ?? 0) + 1;
  return tries[what] === 1;
}

async function* words(...all) {
  yield* all;
}

const handlers = {
  async switches() {
    await step.run("a", () => stream.push({ early: 1 }));
    await step.sleep("go-async", "1s");
    const text = await step.run("b", () => stream.pipe(words("hé", "llo")));
    return Response.json(text, { status: 202, headers: { "x-mine": "yes" } });
  },

  async retries(name) {
    await step.run("a", () => {
      stream.push("partial");
      if (isFirst(`a ${name}`)) throw new Error("in the request");
    });
    await step.run("b", () => {
      stream.push("more");
      if (isFirst(`b ${name}`)) throw new Error("in a re-entry");
    });
    return "done";
  },

  async fails(name) {
    await step.run("a", () => {
      stream.push("partial");
      if (isFirst(`a ${name}`)) throw new Error("in the request");
      throw new NonRetriableError("oh no");
    });
  },

  async hurries(name) {
    await step.run("first", () => {
      if (isFirst(name)) throw new Error("go async");
    });
    for (let n = 0; n < 8; n += 1) {
      await step.run(`step ${n}`, () => {
        stream.push(`${n} begins`);
        stream.push(`${n} ends`);
      });
    }
    return "done";
  },
};

const client = new Inngest({
  id: "streams",
  isDev: true,
  baseUrl: process.argv[2],
  endpointAdapter,
  logger: { debug() {}, info() {}, warn() {}, error() {} },
});
const server = createEndpointServer(
  client.endpoint((request) => {
    const { pathname, searchParams } = new URL(request.url);
    return handlers[pathname.slice(1)](searchParams.get("name"));
  }),
);
server.listen(0, "127.0.0.1", () => console.log(`http://localhost:${server.address().port}`));
