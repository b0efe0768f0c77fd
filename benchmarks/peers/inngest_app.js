// A durable endpoint of Inngest's SDK, whose runs are kept by the server at INNGEST_BASE_URL; and
// the same handler without durability. Listens at the port that it is given.

import http from "node:http";

import { Inngest, step } from "inngest";
import { endpointAdapter, serveEndpoint } from "inngest/node";

const quiet = { info() {}, warn() {}, error() {}, debug() {} };
const client = new Inngest({ id: "peer", logger: quiet, endpointAdapter });

// A GET: the SDK reads a request's body before the handler can.
const durable = client.endpoint(async () => {
  let value = 41;
  for (const number of [0, 1, 2]) {
    value = await step.run(`step-${number}`, () => value + 1);
  }
  return Response.json({ value });
});

async function bare(request, response) {
  const parts = [];
  for await (const part of request) parts.push(part);
  let value = JSON.parse(Buffer.concat(parts).toString()).number;
  for (let number = 0; number < 3; number++) value = await Promise.resolve(value + 1);
  const body = JSON.stringify({ value });
  response.writeHead(200, { "content-type": "application/json", "content-length": body.length });
  response.end(body);
}

const endpoint = serveEndpoint(durable);
const server = http.createServer((request, response) => {
  if (request.url === "/bare") bare(request, response);
  else endpoint(request, response);
});
server.listen(Number(process.argv[2]), "127.0.0.1");
