// Inngest's `fetchWithStream`, with everything it does told as `[name, value]`. Runs in Node and,
// bundled, in a browser.

import { fetchWithStream } from "inngest/experimental/durable-endpoints/client";

const PATIENCE = 20_000;

/**
 * Read `url` to its end, and tell each fetch, each callback, and the `response` or the `error`.
 *
 * @param {object} task
 * @param {string} task.url
 * @param {RequestInit} [task.request] method, headers and body
 * @param {string} [task.knock] fetched when the first chunk arrives, by a client that sees it live
 * @param {number} [task.pause] for how many milliseconds it is busy with the first chunk
 * @param {number} [task.abortAfter] abort when that many chunks have arrived
 * @param {(line: [string, unknown]) => void} tell
 */
export async function read({ url, request, knock, pause, abortAfter }, tell) {
  const abort = new AbortController();
  const limit = setTimeout(() => abort.abort(new Error("the stream does not end")), PATIENCE);
  let chunks = 0;
  try {
    const response = await fetchWithStream(url, {
      fetch: (target, init) => watchedFetch(target, init, tell),
      fetchOpts: { ...request, signal: abort.signal },
      onMetadata: (value) => tell(["metadata", value]),
      onData: (value) => {
        tell(["data", value]);
        chunks += 1;
        if (chunks === 1 && knock) fetch(knock);
        if (chunks === 1 && pause) keepBusy(pause);
        if (chunks === abortAfter) abort.abort();
      },
      onCommit: (value) => tell(["commit", value]),
      onRollback: (value) => tell(["rollback", value]),
    });
    const { status, headers } = response;
    tell(["response", { status, headers: [...headers], body: await response.text() }]);
  } catch (error) {
    tell(["error", { name: error.name, message: error.message }]);
  } finally {
    clearTimeout(limit);
  }
}

async function watchedFetch(target, init, tell) {
  const response = await fetch(target, init);
  const { status, headers } = response;
  tell(["fetch", { url: String(target), status, headers: [...headers] }]);
  return response;
}

function keepBusy(milliseconds) {
  const end = performance.now() + milliseconds;
  while (performance.now() < end);
}
