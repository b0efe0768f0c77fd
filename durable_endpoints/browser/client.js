/**
 * The browser client of durable endpoints: an ES module without dependencies or build step.
 *
 *     import { fetchWithStream } from "/wait/client.js";
 *
 *     const response = await fetchWithStream("/report", {
 *       method: "POST",
 *       headers: { "content-type": "application/json" },
 *       body: JSON.stringify(order),
 *       onText: (text) => (output.textContent = text),
 *     });
 *     const report = await response.json();
 *
 * A run outlives its connections, so a broken one is no error here: every frame that counts has a
 * position, and the next connection asks for what comes after the last one seen. Nothing is lost
 * and nothing comes twice. What the exports take and give is told in `client.d.ts`.
 */

/** Milliseconds without a byte, heartbeats included (one every 15 s), before a stream is dead. */
const SILENCE = 45_000;
/** Milliseconds: pauses grow from the first towards the longest, each shortened at random. */
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 15_000;
/** A stream that lived this many milliseconds was no failure, even with nothing but heartbeats. */
const LONG_LIVED = 10_000;
/** Milliseconds of pauses in a row, with nothing gained between them, before an error is thrown. */
const GIVE_UP_AFTER = 300_000;
/** Statuses with which gateways, rate limits and a restarting server say "later". */
const TEMPORARY = [429, 502, 503, 504];
/** Statuses whose responses have no body, not even an empty one (WHATWG Fetch §2.2.3). */
const WITHOUT_BODY = [204, 205, 304];
/** The frames that count: what they do to the text, if anything, and who is told. */
const CHANGES = {
  "inngest.stream": { apply: "push", callback: "onData" },
  "inngest.commit": { apply: "commit", callback: "onCommit" },
  "inngest.rollback": { apply: "rollback", callback: "onRollback" },
  "durable.progress": { callback: "onProgress" },
  "durable.log": { callback: "onLog" },
};

/**
 * `fetch`, with what the endpoint streams on the way to its response.
 *
 * @param {string | URL} url
 * @param {import("./client.js").FetchWithStreamOptions} [options]
 * @returns {Promise<Response>} the endpoint's own status, headers and body
 */
export async function fetchWithStream(url, options = {}) {
  const init = requestInit(options);
  if (init.body instanceof ReadableStream) {
    init.body = await new Response(init.body).blob(); // a stream could not be sent a second time
  }
  const headers = (init.headers = new Headers(init.headers));
  const accept = headers.get("accept");
  headers.set("accept", accept ? `text/event-stream, ${accept}` : "text/event-stream");
  if (options.idempotencyKey !== false && !headers.has("idempotency-key")) {
    headers.set("idempotency-key", options.idempotencyKey ?? randomKey());
  }
  new Request(url, init); // throws at a mistake, which `fetch` tells like a broken network
  return waitFor(new Run(options, null), { url, init }, options);
}

/**
 * Wait for a run by its URL, from its beginning: what it streamed so far comes first, without what
 * was rolled back.
 *
 * @param {string | URL} runUrl as `onMetadata` told it, or a redirect's `Location`
 * @param {import("./client.js").FollowOptions} [options]
 * @returns {Promise<Response>}
 */
export async function followRun(runUrl, options = {}) {
  return waitFor(new Run(options, runUrl), null, options);
}

/**
 * After a reload of the page: follow the run that `storageKey` remembers, from its beginning.
 *
 * @param {string} storageKey
 * @param {import("./client.js").FollowOptions} [options]
 * @returns {Promise<Response> | null} null when no run of that name is under way in this tab
 */
export function resumeStream(storageKey, options = {}) {
  const runUrl = storage((kept) => kept.getItem(storageKey));
  return runUrl ? followRun(runUrl, { ...options, storageKey }) : null;
}

/**
 * Cancel a run, where its endpoint allows that. Whoever waits for it gets a 409.
 *
 * @param {string | URL} runUrl
 * @param {import("./client.js").CancelOptions} [options]
 * @returns {Promise<Response>} 200; 403 when the endpoint forbids it; 409 when the run has ended
 */
export async function cancelRun(runUrl, { fetch = globalThis.fetch, ...init } = {}) {
  return fetch(absolute(runUrl), { ...init, method: "DELETE" });
}

/**
 * Text out of chunks, some of which are withdrawn again.
 *
 * Chunks stand in the order in which they came, those of parallel steps among each other; a
 * rollback takes out its own step's uncommitted ones, wherever they stand.
 */
export class LiveText {
  #toText;
  #parts = [];

  constructor(toText = (data) => (typeof data === "string" ? data : "")) {
    this.#toText = toText;
  }

  push({ data, hashedStepId = null }) {
    const text = this.#toText(data);
    if (text) this.#append({ text, committed: false, step: hashedStepId });
  }

  commit({ hashedStepId = null }) {
    const parts = this.#parts;
    this.#parts = [];
    for (const part of parts) {
      this.#append(part.step === hashedStepId ? { ...part, committed: true } : part);
    }
  }

  rollback({ hashedStepId = null }) {
    this.#parts = this.#parts.filter((part) => part.committed || part.step !== hashedStepId);
  }

  get text() {
    return join(this.#parts);
  }

  get committed() {
    return join(this.#parts.filter((part) => part.committed));
  }

  get provisional() {
    return join(this.#parts.filter((part) => !part.committed));
  }

  get parts() {
    return this.#parts.map(({ text, committed }) => ({ text, committed }));
  }

  /** Neighbours that share their fate become one, so that a long text is a few parts. */
  #append(part) {
    const last = this.#parts.at(-1);
    const alike = last?.committed === part.committed && (part.committed || last.step === part.step);
    if (alike) last.text += part.text;
    else this.#parts.push(part);
  }
}

/** Server-sent events out of bytes, however they were cut (WHATWG HTML §9.2.6). */
export class EventParser {
  #decoder = new TextDecoder(); // which drops a byte order mark as well
  #line = "";
  #returned = false;
  #event = { data: [] };

  /**
   * @param {Uint8Array} bytes
   * @returns {import("./client.js").ServerSentEvent[]} the events that are whole now
   */
  push(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (text === "") return [];
    if (this.#returned && text.startsWith("\n")) text = text.slice(1); // the rest of a CRLF
    this.#returned = text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop();
    return lines.flatMap((line) => (line === "" ? this.#dispatch() : this.#take(line)));
  }

  #take(line) {
    const [, field, value] = /^([^:]*)(?:: ?)?(.*)$/s.exec(line); // a comment's field is empty
    if (field === "data") this.#event.data.push(value);
    else if (field === "event" || field === "id") this.#event[field] = value;
    return [];
  }

  #dispatch() {
    const { id, event, data } = this.#event;
    this.#event = { data: [] };
    return data.length ? [{ id, event: event || "message", data: data.join("\n") }] : [];
  }
}

/** Connect again and again, until the response is there. `first` is null when there is a URL. */
async function waitFor(run, first, { signal, fetch, giveUpAfter = GIVE_UP_AFTER }) {
  // Without a key, a request that may have arrived must not be sent again.
  const repeatable = () => run.url !== null || first.init.headers.has("idempotency-key");
  let failures = 0; // connections in a row that brought nothing new
  let paused = 0;
  for (;;) {
    signal?.throwIfAborted();
    const { seen } = run;
    const began = Date.now();
    const connection = new Connection(fetch, signal);
    const response = await connection.open(...run.nextRequest(first));
    const later = response !== null && isTemporary(response) && repeatable();
    if (response && !later) {
      if (!run.isStreamedBy(response)) {
        run.end();
        return response; // its connection stays open: the caller reads the body
      }
      run.learnUrl(response.headers.get("durable-run-url"), response.url);
      const answer = await readAnswer(connection, run, signal);
      if (answer) return answer;
    }
    signal?.throwIfAborted();

    if (run.seen > seen || (response && Date.now() - began > LONG_LIVED)) failures = paused = 0;
    // A server ends a stream in good order when the run goes on elsewhere: no reason to pause.
    const inOrder = failures === 0 && !later && !connection.error;
    const backoff = Math.random() * Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** failures);
    const pause = inOrder ? 0 : backoff + (later ? retryAfter(response) : 0);
    failures += 1;
    paused += pause; // pauses, not time: a laptop that slept for hours has not tried for hours
    if (paused > giveUpAfter || !repeatable()) {
      if (later) return response;
      throw connection.error ?? new Error("The stream ended without a response.");
    }
    connection.close();
    await sleep(pause, signal);
  }
}

/** The response at a stream's end; null when the connection ends before it. */
async function readAnswer(connection, run, signal) {
  try {
    for (let frames; (frames = await connection.read()); ) {
      for (const frame of frames) {
        signal?.throwIfAborted();
        const answer = await run.take(frame); // awaited: a slow reader slows the stream down
        if (answer) return answer;
      }
    }
    return null;
  } finally {
    connection.close();
  }
}

/** One request and its stream. It breaks quietly: why is in `error`, null while all is well. */
class Connection {
  error = null;
  #parser = new EventParser();
  #stop = new AbortController();
  #signal;
  #fetch;
  #body;
  #reader;

  constructor(fetch = globalThis.fetch, signal = null) {
    this.#fetch = (...request) => fetch(...request); // a browser's own refuses to be a method
    this.#signal = signal ? AbortSignal.any([signal, this.#stop.signal]) : this.#stop.signal;
  }

  /** The response, null when there is none; within `limit` milliseconds, if that is given. */
  async open(url, init, limit) {
    return this.#quietly(limit, async () => {
      const response = await this.#fetch(url, { ...init, signal: this.#signal });
      this.#body = response.body;
      return response;
    });
  }

  /** The frames that have come; null at the end. */
  async read() {
    return this.#quietly(SILENCE, async () => {
      this.#reader ??= this.#body.getReader();
      const { done, value } = await this.#reader.read();
      return done ? null : this.#parser.push(value).map(withJson);
    });
  }

  close(reason) {
    this.#stop.abort(reason);
  }

  async #quietly(limit, work) {
    const silence = () => this.close(new Error(`Nothing came for ${limit} milliseconds.`));
    const timer = limit && setTimeout(silence, limit);
    try {
      return await work();
    } catch (error) {
      this.error = error;
      return null;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** What is known of a run: where it is, how far it was read, and whom to tell. */
class Run {
  /** Null as long as only the request that starts it is known. */
  url = null;
  /** How many frames brought something new. */
  seen = 0;
  #options;
  #text;
  #id = null;
  #position = null;

  constructor(options, url) {
    this.#options = options;
    this.#text = new LiveText(options.toText);
    this.learnUrl(url);
  }

  learnUrl(url, base) {
    if (this.url !== null || !url) return;
    this.url = absolute(url, base);
    const { storageKey } = this.#options;
    if (storageKey) storage((kept) => kept.setItem(storageKey, this.url));
  }

  end() {
    const { storageKey } = this.#options;
    const isOurs = (kept) => kept.getItem(storageKey) === this.url; // not that of a later run
    if (storageKey) storage((kept) => isOurs(kept) && kept.removeItem(storageKey));
  }

  /** What `Connection.open` takes. */
  nextRequest(first) {
    if (this.url === null) {
      if (this.#position !== null) first.init.headers.set("last-event-id", this.#position);
      return [first.url, first.init];
    }
    const url = new URL(this.url);
    // Not `Last-Event-ID`: another origin would have to be asked whether it may be sent.
    if (this.#position !== null) url.searchParams.set("from", this.#position);
    const init = first ? {} : requestInit(this.#options);
    const headers = new Headers(init.headers);
    headers.set("accept", "text/event-stream");
    const method = "GET"; // the options may be those with which the run was started
    return [url.href, { cache: "no-store", ...init, headers, method, body: null }, SILENCE];
  }

  /** Whether a response is the run's stream; an endpoint's answer may be a stream of its own. */
  isStreamedBy({ headers, redirected, type }) {
    if (!/^text\/event-stream\b/i.test(headers.get("content-type"))) return false;
    if (this.url !== null || redirected || headers.has("durable-run-url")) return true;
    return type !== "basic"; // another origin may hide its headers
  }

  /** Tell of a frame; gives the response when that is what it was. */
  async take({ id, event, data }) {
    const { onMetadata, onText, onEvent } = this.#options;
    if (this.#id === null && event !== "inngest.metadata") {
      throw new Error("This stream is not a durable endpoint's: it begins without metadata.");
    }
    const isOld = isWithin(id, this.#position); // a server may begin earlier than it was asked to
    if (id !== undefined && !isOld) this.#position = id;
    if (event === "inngest.response") {
      this.end();
      return toResponse(data.response);
    }
    if (event === "inngest.metadata" && this.#id === null) {
      this.#id = data.runId;
      await onMetadata?.({ runId: this.#id, runUrl: this.url });
    } else if (event === "inngest.redirect_info" && this.url === null) {
      const url = new URL(data.url);
      url.searchParams.delete("after"); // it skips what this stream has still to tell
      this.learnUrl(url);
      await onMetadata?.({ runId: this.#id, runUrl: this.url });
    } else if (event in CHANGES && !isOld) {
      const { apply, callback } = CHANGES[event];
      const told = apply ? data : data.data;
      const change = { ...told, hashedStepId: data.hashedStepId ?? null };
      this.seen += 1;
      if (apply) this.#text[apply](change);
      await this.#options[callback]?.(change);
      if (apply) await onText?.(this.#text.text, this.#text);
    } else if (event.startsWith("durable.") && !(event in CHANGES)) {
      await onEvent?.(event, data);
    }
    return null;
  }
}

/** The endpoint's response, as `fetch` would have given it; only its `url` is empty. */
function toResponse({ statusCode, headers, headerList, body, bodyBase64 }) {
  const own = new Headers();
  for (const [name, value] of headerList ?? Object.entries(headers)) {
    try {
      own.append(name, value);
    } catch {
      // A name or value that HTTP allows and `Headers` does not.
    }
  }
  own.delete("durable-status");
  const status = Number(headers["durable-status"] ?? statusCode);
  if (WITHOUT_BODY.includes(status)) return new Response(null, { status, headers: own });
  // Bytes, because a string would bring a content type of its own.
  const bytes = bodyBase64 ? fromBase64(bodyBase64) : new TextEncoder().encode(body);
  const encoding = own.get("content-encoding")?.toLowerCase();
  if (bytes.length === 0 || !["gzip", "deflate"].includes(encoding)) {
    return new Response(bytes, { status, headers: own });
  }
  const unpacked = new Response(bytes).body.pipeThrough(new DecompressionStream(encoding));
  return new Response(unpacked, { status, headers: own });
}

/** Whether to ask again. An answer that names its run is the run's own, however it may look. */
function isTemporary({ status, headers }) {
  if (!TEMPORARY.includes(status) || headers.has("durable-step-executed")) return false;
  return !headers.has("durable-run-id") || headers.get("durable-run-status") === "unavailable";
}

/** Milliseconds that a server asks for, by seconds or by a date (RFC 9110 §10.2.3). */
function retryAfter({ headers }) {
  const value = headers.get("retry-after") ?? "";
  const milliseconds = /^\d+$/.test(value) ? value * 1000 : Date.parse(value) - Date.now();
  return Math.max(0, milliseconds || 0);
}

/** Whether a position was passed already. Only numbers tell; other positions are opaque. */
function isWithin(id, position) {
  return [id, position].every((text) => /^\d+$/.test(text)) && Number(id) <= Number(position);
}

/** Only the frames of the wire are sure to hold JSON. */
function withJson({ id, event, data }) {
  return { id, event, data: /^(inngest|durable)\./.test(event) ? JSON.parse(data) : null };
}

/** Of the options, what `fetch` knows. */
function requestInit(options) {
  const { idempotencyKey, storageKey, giveUpAfter, toText, fetch, signal, ...rest } = options;
  const { onMetadata, onData, onCommit, onRollback, onText, ...others } = rest;
  const { onProgress, onLog, onEvent, ...init } = others;
  return init;
}

/** A pause that ends early, with an error, when the signal is aborted. */
function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => (clearTimeout(timer), reject(signal.reason));
    const wake = () => (signal?.removeEventListener("abort", abort), resolve());
    const timer = setTimeout(wake, milliseconds);
    signal?.addEventListener("abort", abort, { once: true });
  });
}

/** Use the tab's storage, if there is one and it may be used; null otherwise. */
function storage(use) {
  try {
    return use(globalThis.sessionStorage);
  } catch {
    return null;
  }
}

function randomKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // also in a page without https
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function absolute(url, base) {
  return new URL(url, base || globalThis.location?.href).href;
}

function join(parts) {
  return parts.reduce((text, part) => text + part.text, "");
}
