/**
 * Types of the browser client. To TypeScript, `/wait/client.js` is found by
 *
 *     "paths": { "/wait/client.js": ["./types/durable-endpoints.d.ts"] }
 *
 * with a copy of this file.
 */

/** One chunk that a run streamed: provisional until its step is committed. */
export interface Chunk {
  /** Any JSON value. */
  data: unknown;
  /** Whose chunk it is; null outside steps. */
  hashedStepId: string | null;
}

/** A commit or a rollback: of which step's chunks (null: of those outside steps). */
export interface StepChange {
  hashedStepId: string | null;
}

/** How far the work of a step, or of the handler, is (`step.progress`). */
export interface Progress {
  current: number;
  /** Absent if it is not known. */
  total?: number;
  message?: string;
  /** Whose progress it is; null outside steps. */
  hashedStepId: string | null;
}

/** A line that a step, or the handler, has written for its readers (`step.log`). */
export interface Log {
  level: "debug" | "info" | "warning" | "error";
  message: string;
  data?: Record<string, unknown>;
  /** When, in epoch milliseconds. */
  time: number;
  hashedStepId: string | null;
}

export interface Metadata {
  runId: string;
  /**
   * Where the run can be followed and cancelled: it holds the right to do so, so treat it as a
   * secret. Null while another origin hides its headers.
   */
  runUrl: string | null;
}

/**
 * Called in the order of the run, each frame once, whatever happened to the connections between.
 * A promise is awaited before the next call; an error rejects the whole.
 */
export interface StreamCallbacks {
  /** First, and once more if the run's URL was hidden and became known. */
  onMetadata?: (metadata: Metadata) => unknown;
  onData?: (chunk: Chunk) => unknown;
  /** A step has ended; every step does this, whether it streamed or not. Its chunks stay. */
  onCommit?: (change: StepChange) => unknown;
  /** A step has failed: its uncommitted chunks are withdrawn. */
  onRollback?: (change: StepChange) => unknown;
  /** The text after each change, and which of it is committed. */
  onText?: (text: string, live: LiveText) => unknown;
  /** Of a try that is withdrawn, `onRollback` tells, as with its chunks. */
  onProgress?: (progress: Progress) => unknown;
  onLog?: (line: Log) => unknown;
  /** Every other frame of ours, of later versions. Such a frame may come again. */
  onEvent?: (name: string, data: unknown) => unknown;
}

/** The options of `fetchWithStream` will do as well: `method` and `body` are not used. */
export interface FollowOptions
  extends StreamCallbacks, Omit<RequestInit, "method" | "body" | "signal"> {
  /** Aborts the wait, not the run. */
  signal?: AbortSignal | null;
  /**
   * Keep the run's URL under this name in `sessionStorage` until its end, so that a reloaded page
   * finds it again with `resumeStream`.
   */
  storageKey?: string;
  /** What `onText` reads out of a chunk. Default: strings, and nothing of other values. */
  toText?: (data: unknown) => string;
  /**
   * Milliseconds of pauses between connections that brought nothing new, until the last error is
   * thrown, or the last 429, 502, 503 or 504 given. Default: 300,000.
   */
  giveUpAfter?: number;
  /** In place of `globalThis.fetch`. */
  fetch?: typeof globalThis.fetch;
}

/**
 * `method`, `headers`, `body`, `credentials` … are those of the request to the endpoint. Where the
 * run is followed elsewhere, its URL is all that is sent.
 */
export interface FetchWithStreamOptions
  extends FollowOptions, Pick<RequestInit, "method" | "body"> {
  /**
   * Makes it safe to send the request again. Default: a random key, unless the headers have one.
   * False sends none, for an endpoint on another origin that does not allow the header: then a
   * request that failed before its stream began is not repeated.
   */
  idempotencyKey?: string | false;
}

export interface CancelOptions extends Omit<RequestInit, "method"> {
  /** In place of `globalThis.fetch`. */
  fetch?: typeof globalThis.fetch;
}

/**
 * `fetch`, with what the endpoint streams on the way to its response.
 *
 * Resolves to the response with the endpoint's own status, headers and body, also when that is an
 * error or a redirect (which is not followed); a run that ended without one answers as `/wait`
 * does: 409 cancelled, 500 failed, 503 parked, 504 timed out. An answer that is not streamed is
 * given as it is.
 *
 * @throws TypeError for arguments that `fetch` refuses, or a network that stayed broken
 * @throws the signal's reason, when it is aborted
 */
export function fetchWithStream(
  url: string | URL,
  options?: FetchWithStreamOptions,
): Promise<Response>;

/**
 * Wait for a run by its URL, as `onMetadata` or a redirect's `Location` told it, from its
 * beginning: what it streamed so far comes first, without what was rolled back.
 */
export function followRun(runUrl: string | URL, options?: FollowOptions): Promise<Response>;

/**
 * After a reload of the page: follow the run that `storageKey` remembers, from its beginning. Null
 * when no run of that name is under way in this tab.
 */
export function resumeStream(
  storageKey: string,
  options?: Omit<FollowOptions, "storageKey">,
): Promise<Response> | null;

/**
 * Cancel a run: 200, or 403 when its endpoint forbids it, or 409 when the run has ended. Whoever
 * waits for it gets a 409.
 */
export function cancelRun(runUrl: string | URL, options?: CancelOptions): Promise<Response>;

/** Text out of chunks, some of which are withdrawn again. Its methods take what callbacks get. */
export class LiveText {
  constructor(toText?: (data: unknown) => string);
  push(chunk: Chunk): void;
  commit(change: StepChange): void;
  rollback(change: StepChange): void;
  /** All of it, in the order in which it came. */
  readonly text: string;
  /** What stays. */
  readonly committed: string;
  /** What may be withdrawn. With parallel steps it may stand between committed parts. */
  readonly provisional: string;
  /** The text in pieces, to show committed and provisional ones differently. */
  readonly parts: { text: string; committed: boolean }[];
}

export interface ServerSentEvent {
  id?: string;
  event: string;
  data: string;
}

/** Server-sent events out of bytes, however they were cut (WHATWG HTML §9.2.6). */
export class EventParser {
  /** The events that are whole now. */
  push(bytes: Uint8Array): ServerSentEvent[];
}
