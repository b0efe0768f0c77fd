// An application made with Inngest's SDK: one durable endpoint for each path. It prints a line when
// it listens at the port that it was given, and then one for each body of a step that begins.
// INNGEST_BASE_URL names the server.

import http from "node:http";

import { Inngest, NonRetriableError, RetryAfterError, referenceFunction, step } from "inngest";
import { endpointAdapter, serveEndpoint } from "inngest/node";

const isDev = !process.env.INNGEST_SIGNING_KEY;
const quiet = { info() {}, warn() {}, error() {}, debug() {} };
const plain = { asyncResponse: "redirect", asyncRedirectUrl: undefined, retries: undefined };

function client(options) {
  // The adapter keeps what it was told last: every client tells it everything.
  const adapter = options ? endpointAdapter.withOptions({ ...plain, ...options }) : endpointAdapter;
  return new Inngest({ id: "endpoints", isDev, logger: quiet, endpointAdapter: adapter });
}

const tries = new Map();

/** How often this was called with `name`, now included. It is told on standard output. */
function count(name) {
  const times = (tries.get(name) ?? 0) + 1;
  tries.set(name, times);
  console.log(name);
  return times;
}

const handlers = {
  async success(of) {
    const a = await step.run("a", () => count(`${of} a`));
    const b = await step.run("b", () => a + 1);
    return { a, b };
  },
  async steplessly() {
    return "no steps";
  },
  async sleeping(of) {
    const a = await step.run("a", () => count(`${of} a`) && "hello");
    await step.sleep("nap", "1s");
    const b = await step.run("b", () => count(`${of} b`) && "world");
    return Response.json(`${a} ${b}`, { status: 202, headers: { "x-own": "yes" } });
  },
  async retried(of) {
    return await step.run("flaky", () => {
      if (count(`${of} flaky`) < 3) throw new Error("not yet");
      return "third time";
    });
  },
  async caught(of) {
    await step.sleep("nap", "1ms");
    try {
      await step.run("final", () => {
        count(`${of} final`);
        throw new NonRetriableError("no way");
      });
    } catch (error) {
      return `caught ${error.message}`;
    }
  },
  async failing(of) {
    await step.run("always", () => {
      count(`${of} always`);
      throw new Error("never works");
    });
  },
  async throwing(of) {
    await step.run("a", () => count(`${of} a`));
    await step.sleep("nap", "1ms");
    if (count(`${of} handler`) < 3) throw new Error("the handler itself");
    return "recovered";
  },
  async later(of) {
    await step.run("flaky", () => {
      if (count(`${of} flaky`) < 2) throw new RetryAfterError("busy", "2s");
    });
    return "later";
  },
  async waiting(of, url) {
    const event = await step.waitForEvent("approval", {
      event: `approved/${of}`,
      timeout: url.searchParams.get("timeout") ?? "1m",
      if: url.searchParams.get("if") ?? undefined,
    });
    return event === null ? "timed out" : { approved: event.data };
  },
  async parallel(of) {
    const found = await Promise.all([
      step.run("one", () => count(`${of} one`) && 1),
      step.run("two", () => count(`${of} two`) && 2),
      step.sleep("nap", "1ms").then(() => step.run("three", () => count(`${of} three`) && 3)),
    ]);
    return found.reduce((sum, one) => sum + one);
  },
  async unsupported() {
    try {
      await step.invoke("other", { function: referenceFunction({ functionId: "f" }) });
    } catch (error) {
      return `${error.name}: ${error.message}`;
    }
  },
  async signalled(of) {
    return await step.waitForSignal("signal", { signal: of, timeout: "1m", onConflict: "fail" });
  },
  async slow(of) {
    await step.sleep("nap", "1ms");
    await step.run("slow", async () => {
      count(`${of} slow`);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    });
    return "slow, but done";
  },
};

function serve(name, options = {}) {
  const endpoint = client(options).endpoint(async (request) => {
    const url = new URL(request.url, "http://localhost");
    return await handlers[name](url.searchParams.get("of") ?? "", url);
  });
  return serveEndpoint(endpoint);
}

const listeners = new Map([["/proxy", client().endpointProxy()]]);
for (const name of Object.keys(handlers)) {
  listeners.set(`/${name}`, serve(name));
  listeners.set(`/token/${name}`, serve(name, { asyncResponse: "token" }));
  listeners.set(`/proxied/${name}`, serve(name, { asyncRedirectUrl: "/proxy" }));
  listeners.set(`/once/${name}`, serve(name, { retries: 1 }));
}

const server = http.createServer((request, response) => {
  const listener = listeners.get(new URL(request.url, "http://localhost").pathname);
  if (listener) listener(request, response);
  else response.writeHead(404).end("no such endpoint");
});
server.listen(Number(process.argv[2]), "127.0.0.1", () => console.log("ready"));
