// A process that answers requests by a component of WASI 0.3, one guest after another.
//
//     node wasi3.mjs FOLDER PACKAGES
//
// FOLDER has the component as jco transpiles it, PACKAGES has node_modules with jco's shim of WASI
// 0.3. Messages are JSON after four bytes with their length, over the descriptor 3, as channel.py
// has them. Every guest has an instance and host functions of its own, which end with it. A guest
// has the process for itself, so that a host function may block.

import { createHash, randomBytes } from "node:crypto";
import { closeSync, openSync, readdirSync, readFileSync, readSync, statSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, packages] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const shim = (name) => import(pathToFileURL(require.resolve(`@bytecodealliance/preview3-shim${name}`)));
const { http, stream, future } = await shim("");
const { _fieldsFromEntriesChecked: fieldsOf } = await shim("/http/fields");
const { instantiate } = await import(pathToFileURL(join(folder, "app.js")));

const OFFERED =
  "it offers Serverless AI, variables, files, clocks, random numbers and responses to HTTP requests";
const CHUNK_BYTES = 64 * 1024;
const RANDOM_BYTES = 1024 * 1024;
const NANOSECONDS = 1_000_000_000n;
const METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
const TRAPS = [
  [/^unreachable/, "wasm `unreachable` instruction executed"],
  [/^divide by zero/, "integer divide by zero"],
  [/^memory access out of bounds/, "out of bounds memory access"],
  [/^Maximum call stack size exceeded/, "call stack exhausted"],
];

// --- Messages ------------------------------------------------------------------------------------

const SERVER = 3;

function readExactly(length) {
  const data = Buffer.alloc(length);
  for (let n = 0; n < length; ) {
    const read = readSync(SERVER, data, n, length - n, null);
    if (read === 0) process.exit(0); // the server has hung up
    n += read;
  }
  return data;
}

function receive() {
  const text = readExactly(readExactly(4).readUInt32BE()).toString();
  return JSON.parse(text, (_, value) =>
    typeof value?.$bytes === "string" ? new Uint8Array(Buffer.from(value.$bytes, "base64")) : value,
  );
}

function send(...message) {
  const text = Buffer.from(
    JSON.stringify(message, (_, value) =>
      value instanceof Uint8Array ? { $bytes: Buffer.from(value).toString("base64") } : value,
    ),
  );
  const length = Buffer.alloc(4);
  length.writeUInt32BE(text.length);
  for (const data of [length, text]) {
    for (let n = 0; n < data.length; ) n += writeSync(SERVER, data, n);
  }
}

const float = (value) => ({ $float: Object.is(value, -0) ? "-0" : String(value) });

// --- What a guest may call -----------------------------------------------------------------------

class GuestFailed extends Error {}

const kebab = (name) => name.replace(/[A-Z]/g, (c, at) => (at ? "-" : "") + c.toLowerCase());
const failing = (payload) => Object.assign(new Error("an error of WIT"), { payload });

/** The host functions of one guest: an object of interfaces, by their names without a version. */
function hostOf(guest) {
  const refuse = (name) => {
    throw new GuestFailed(`it called ${name}, which refllm does not offer; ${OFFERED}`);
  };

  class IoError {
    constructor(message) {
      this.message = message;
    }
    toDebugString() {
      return this.message;
    }
  }

  class Pollable {
    constructor(readyAt = 0n) {
      this.readyAt = readyAt;
    }
    ready() {
      return process.hrtime.bigint() >= this.readyAt;
    }
    block() {
      const left = this.readyAt - process.hrtime.bigint();
      if (left > 0n) {
        const nothing = new Int32Array(new SharedArrayBuffer(4));
        Atomics.wait(nothing, 0, 0, Math.ceil(Number(left) / 1e6));
      }
    }
  }

  class InputStream {
    constructor(read) {
      this._read = read;
    }
    read(length) {
      if (length === 0n) return new Uint8Array();
      const data = this._read(Math.min(Number(length), CHUNK_BYTES));
      if (data.length === 0) throw failing({ tag: "closed" });
      return data;
    }
    blockingRead(length) {
      return this.read(length);
    }
    skip(length) {
      return BigInt(this.read(length).length);
    }
    blockingSkip(length) {
      return this.skip(length);
    }
    subscribe() {
      return new Pollable();
    }
  }

  class OutputStream {
    checkWrite() {
      return BigInt(CHUNK_BYTES);
    }
    write(contents) {
      if (contents.length > CHUNK_BYTES) {
        throw new GuestFailed(
          `it wrote ${contents.length} bytes at once; check-write permits ${CHUNK_BYTES}`,
        );
      }
      send("printed", contents);
    }
    blockingWriteAndFlush(contents) {
      this.write(contents);
    }
    flush() {}
    blockingFlush() {}
    writeZeroes(length) {
      if (length > BigInt(CHUNK_BYTES)) {
        throw new GuestFailed(
          `it wrote ${length} zeroes at once; check-write permits ${CHUNK_BYTES}`,
        );
      }
      this.write(new Uint8Array(Number(length)));
    }
    blockingWriteZeroesAndFlush(length) {
      this.writeZeroes(length);
    }
    splice(source, length) {
      const data = source.read(length);
      send("printed", data);
      return BigInt(data.length);
    }
    blockingSplice(source, length) {
      return this.splice(source, length);
    }
    subscribe() {
      return new Pollable();
    }
  }

  const printing = {
    async writeViaStream(data) {
      for await (const part of chunks(data)) send("printed", part);
      return { tag: "ok", val: undefined };
    },
  };
  const clockTime = (nanoseconds) => ({
    seconds: nanoseconds / NANOSECONDS,
    nanoseconds: Number(nanoseconds % NANOSECONDS),
  });
  const random = (length) => {
    if (length > BigInt(RANDOM_BYTES)) {
      throw new GuestFailed(
        `it asked for ${length} random bytes at once; ${RANDOM_BYTES} are given`,
      );
    }
    return new Uint8Array(randomBytes(Number(length)));
  };
  const randomU64 = () => randomBytes(8).readBigUInt64LE();
  const until = async (when) => {
    for (let left; (left = when - process.hrtime.bigint()) > 0n; ) {
      const milliseconds = Math.min(Math.ceil(Number(left) / 1e6), 2 ** 31 - 1);
      await new Promise((resolve) => setTimeout(resolve, milliseconds));
    }
  };
  const now = () => process.hrtime.bigint();
  const wallNow = () => BigInt(Math.round((performance.timeOrigin + performance.now()) * 1e6));
  const exit = (status) => {
    throw new GuestFailed(`it called exit, with status ${status.tag}`);
  };
  const exitWithCode = (code) => {
    throw new GuestFailed(`it called exit, with code ${code}`);
  };

  /** Ask the server's engine; an error is the interface's. */
  const engine = (...request) => {
    send(...request);
    const [kind, ...values] = receive();
    if (kind === "answer") return values;
    // The one error that carries no text to the guest.
    throw failing(kind === "model-not-supported" ? { tag: kind } : { tag: kind, val: values[0] });
  };
  const llm = {
    infer(model, prompt, params) {
      const options = params && {
        max_tokens: params.maxTokens,
        repeat_penalty: float(params.repeatPenalty),
        repeat_penalty_last_n_token_count: params.repeatPenaltyLastNTokenCount,
        temperature: float(params.temperature),
        top_k: params.topK,
        top_p: float(params.topP),
      };
      const [text, prompted, generated] = engine("infer", model, prompt, options ?? null);
      return { text, usage: { promptTokenCount: prompted, generatedTokenCount: generated } };
    },
    generateEmbeddings(model, text) {
      const [embeddings, prompted] = engine("generate_embeddings", model, text);
      return { embeddings, usage: { promptTokenCount: prompted } };
    },
  };

  const variables = guest.services.variables;
  const get = (name) => {
    if (!Object.hasOwn(variables, name)) {
      const message = `the component has no variable '${name.slice(0, 80)}' in spin.toml`;
      throw failing({ tag: "undefined", val: message });
    }
    return variables[name];
  };

  const offered = {
    "fermyon:spin/llm": llm,
    "fermyon:spin/variables": { get },
    "spin:variables/variables": { get },
    "wasi:cli/environment": {
      getArguments: () => [],
      getEnvironment: () => Object.entries(guest.services.environment),
      getInitialCwd: () => undefined,
      initialCwd: () => undefined,
    },
    "wasi:cli/exit": { exit, exitWithCode },
    "wasi:cli/stdin": {
      getStdin: () => new InputStream(() => new Uint8Array()),
      readViaStream: () => [[], Promise.resolve({ tag: "ok", val: undefined })],
    },
    "wasi:cli/stdout": { getStdout: () => new OutputStream(), ...printing },
    "wasi:cli/stderr": { getStderr: () => new OutputStream(), ...printing },
    "wasi:cli/terminal-stdin": { getTerminalStdin: () => undefined },
    "wasi:cli/terminal-stdout": { getTerminalStdout: () => undefined },
    "wasi:cli/terminal-stderr": { getTerminalStderr: () => undefined },
    "wasi:clocks/monotonic-clock": {
      now,
      resolution: () => 1n,
      getResolution: () => 1n,
      subscribeInstant: (when) => new Pollable(when),
      subscribeDuration: (duration) => new Pollable(now() + duration),
      waitUntil: until,
      waitFor: (duration) => until(now() + duration),
    },
    "wasi:clocks/wall-clock": {
      now: () => clockTime(wallNow()),
      resolution: () => ({ seconds: 0n, nanoseconds: 1000 }),
    },
    "wasi:clocks/system-clock": {
      now: () => clockTime(wallNow()),
      getResolution: () => 1000n,
    },
    "wasi:config/store": {
      get: (key) => (Object.hasOwn(variables, key) ? variables[key] : undefined),
      getAll: () => Object.entries(variables),
    },
    "wasi:http/types": {
      Fields: http.Fields,
      Request: http.Request,
      RequestOptions: http.RequestOptions,
      Response: http.Response,
      httpErrorCode: () => undefined,
    },
    "wasi:io/error": { Error: IoError },
    "wasi:io/poll": {
      Pollable,
      poll(pollables) {
        if (pollables.length === 0) {
          throw new GuestFailed("it polled an empty list, which wasi:io/poll does not permit");
        }
        const first = pollables.reduce((a, b) => (a.readyAt <= b.readyAt ? a : b));
        first.block();
        return Uint32Array.from(
          pollables.flatMap((pollable, index) => (pollable.ready() ? [index] : [])),
        );
      },
    },
    "wasi:io/streams": { InputStream, OutputStream },
    "wasi:random/random": { getRandomBytes: random, getRandomU64: randomU64 },
    "wasi:random/insecure": { getInsecureRandomBytes: random, getInsecureRandomU64: randomU64 },
    "wasi:random/insecure-seed": {
      insecureSeed: () => [randomU64(), randomU64()],
      getInsecureSeed: () => [randomU64(), randomU64()],
    },
    ...filesystem(guest, InputStream),
  };

  /** Keep a guest's first failure: jco may report another one. */
  const guarded = (call) =>
    function (...given) {
      if (guest.hasEnded) throw new GuestFailed("it has ended");
      try {
        return call.apply(this, given);
      } catch (error) {
        if (error.payload === undefined) {
          guest.failure ??= error;
          fail(error); // jco may leave the guest without an end
        }
        throw error;
      }
    };
  const refusingClass = (name, of) =>
    new Proxy(class {}, {
      construct: guarded(() => refuse(`${of} [constructor]${kebab(name)}`)),
      get: (own, key) =>
        key in own || typeof key === "symbol"
          ? own[key]
          : guarded(() => refuse(`${of} [static]${kebab(name)}.${kebab(key)}`)),
    });
  const isClass = (name) => name[0] !== name[0].toLowerCase();

  return new Proxy(Object.create(null), {
    get: (_, of) =>
      new Proxy(offered[of] ?? {}, {
        get(own, name) {
          if (isClass(name)) return own[name] ?? (own[name] = refusingClass(name, of));
          return guarded(own[name] ?? (() => refuse(`${of} ${kebab(name)}`)));
        },
      }),
  });
}

/** Yield the bytes of a stream in parts; jco's streams yield a number or several at a time. */
async function* chunks(source) {
  for await (const part of source) {
    yield typeof part === "number" ? Uint8Array.of(part) : Uint8Array.from(part);
  }
}

// --- Files ---------------------------------------------------------------------------------------

/** A guest sees one folder, with the files of spin.toml; a file is its path, as text. */
function filesystem(guest, InputStream) {
  const error = (code) => failing(code);
  const entryAt = (path) => {
    let entry = guest.services.files;
    for (const name of path) {
      if (typeof entry === "string") throw error("not-directory");
      if (!Object.hasOwn(entry, name)) throw error("no-entry");
      entry = entry[name];
    }
    return entry;
  };
  const typeOf = (entry) => (typeof entry === "string" ? "regular-file" : "directory");
  const hash = (path) => {
    const digest = createHash("sha256").update(path.join("/")).digest();
    return { upper: digest.readBigUInt64LE(0), lower: digest.readBigUInt64LE(8) };
  };
  const statOf = (entry) => ({
    type: typeOf(entry),
    linkCount: 1n,
    size: typeof entry === "string" ? BigInt(statSync(entry).size) : 0n,
    dataAccessTimestamp: undefined,
    dataModificationTimestamp: undefined,
    statusChangeTimestamp: undefined,
  });
  const readOf = (file, length, offset) => {
    const data = Buffer.alloc(Math.min(Number(length), CHUNK_BYTES));
    try {
      const opened = openSync(file, "r");
      try {
        return new Uint8Array(data.subarray(0, readSync(opened, data, 0, data.length, offset)));
      } finally {
        closeSync(opened);
      }
    } catch {
      throw error("io");
    }
  };
  const refuse = () => {
    throw error("read-only");
  };

  class DirectoryEntryStream {
    constructor(folder) {
      this._left = Object.entries(folder);
    }
    readDirectoryEntry() {
      const next = this._left.shift();
      return next && { name: next[0], type: typeOf(next[1]) };
    }
  }

  class Descriptor {
    constructor(path) {
      this._path = path;
      this._entry = entryAt(path);
    }
    _resolved(path) {
      if (path.startsWith("/")) throw error("not-permitted");
      const found = [...this._path];
      for (const name of path.split("/")) {
        if (typeof entryAt(found) === "string") throw error("not-directory");
        if (name === "..") {
          if (found.length === 0) throw error("not-permitted");
          found.pop();
        } else if (name !== "" && name !== ".") {
          found.push(name);
          entryAt(found);
        }
      }
      return found;
    }
    getFlags() {
      return { read: true };
    }
    getType() {
      return typeOf(this._entry);
    }
    stat() {
      return statOf(this._entry);
    }
    statAt(_flags, path) {
      return statOf(entryAt(this._resolved(path)));
    }
    metadataHash() {
      return hash(this._path);
    }
    metadataHashAt(_flags, path) {
      return hash(this._resolved(path));
    }
    isSameObject(other) {
      return this._path.join("/") === other._path.join("/");
    }
    openAt(_flags, path, open, flags) {
      if (open.truncate || flags.write || flags.mutateDirectory) throw error("read-only");
      let found;
      try {
        found = this._resolved(path);
      } catch (failure) {
        throw failure.payload === "no-entry" && open.create ? error("read-only") : failure;
      }
      if (open.exclusive) throw error("exist");
      if (open.directory && typeof entryAt(found) === "string") throw error("not-directory");
      return new Descriptor(found);
    }
    read(length, offset) {
      if (typeof this._entry !== "string") throw error("is-directory");
      const data = readOf(this._entry, length, offset);
      return [data, data.length < Math.min(Number(length), CHUNK_BYTES)];
    }
    readViaStream(offset) {
      if (typeof this._entry !== "string") throw error("is-directory");
      let at = offset;
      return new InputStream((length) => {
        const data = readOf(this._entry, length, at);
        at += BigInt(data.length);
        return data;
      });
    }
    readDirectory() {
      if (typeof this._entry === "string") throw error("not-directory");
      return new DirectoryEntryStream(this._entry);
    }
    readlinkAt() {
      throw error("invalid");
    }
    advise() {}
    sync() {}
    syncData() {}
  }
  const changes = [
    ...["write", "writeViaStream", "appendViaStream", "setSize", "setTimes", "setTimesAt"],
    ...["createDirectoryAt", "removeDirectoryAt", "unlinkFileAt", "renameAt", "linkAt", "symlinkAt"],
  ];
  for (const name of changes) Descriptor.prototype[name] = refuse;

  return {
    "wasi:filesystem/preopens": { getDirectories: () => [[new Descriptor([]), "/"]] },
    "wasi:filesystem/types": {
      Descriptor,
      DirectoryEntryStream,
      filesystemErrorCode: () => undefined,
    },
  };
}

// --- Requests ------------------------------------------------------------------------------------

const modules = new Map();
for (const name of readdirSync(folder).filter((each) => each.endsWith(".wasm"))) {
  modules.set(name, await WebAssembly.compile(readFileSync(join(folder, name))));
}
const coreModule = async (name) => modules.get(name);

function requestOf({ method, target, headers, body, authority }) {
  const contents = new stream.StreamReader(
    new ReadableStream({
      start(controller) {
        if (body.length > 0) controller.enqueue(body);
        controller.close();
      },
    }),
  );
  const trailers = new future.FutureReader(Promise.resolve({ tag: "ok", val: undefined }));
  const [request] = http.Request.new(fieldsOf(headers), contents, trailers, null);
  request.setMethod(
    METHODS.includes(method) ? { tag: method.toLowerCase() } : { tag: "other", val: method },
  );
  request.setPathWithQuery(target);
  request.setScheme({ tag: "HTTP" });
  request.setAuthority(authority);
  return request;
}

let fail = () => {}; // ends the guest that runs
for (const event of ["uncaughtException", "unhandledRejection"]) {
  process.on(event, (error) => fail(error));
}
// Nothing is left to do, and the guest has not ended.
process.on("beforeExit", () => fail(new GuestFailed("it returned without a response")));

async function answer(guest, request) {
  const failed = new Promise((_, reject) => (fail = reject));
  failed.catch(() => {});
  const root = await Promise.race([instantiate(coreModule, hostOf(guest)), failed]);
  const name = Object.keys(root).find((each) => each.startsWith("wasi:http/handler@0.3."));
  const response = await Promise.race([root[name].handle(requestOf(request)), failed]);
  if (!response) throw new GuestFailed("it returned without a response");
  send("begun", response.getStatusCode(), response.getHeaders().copyAll());
  const [body] = http.Response.consumeBody(response, future.future().rx);
  if (!body) return;
  const parts = chunks(body)[Symbol.asyncIterator]();
  for (let part; !(part = await Promise.race([parts.next(), failed])).done; ) {
    send("body", part.value);
  }
}

function reasonOf(error) {
  if (error instanceof GuestFailed) return error.message;
  const message = String(error?.message ?? error);
  if (message.startsWith("wasm trap: ")) return message;
  const trap = TRAPS.find(([pattern]) => pattern.test(message));
  if (trap) return `wasm trap: ${trap[1]}`;
  if (error?.payload !== undefined) {
    const { tag, val } = error.payload;
    return `it responded with the error ${tag}${typeof val === "string" ? `: ${val}` : ""}`;
  }
  return `${error?.name ?? "Error"}: ${message}`;
}

async function main() {
  let services;
  send("ready");
  for (;;) {
    const [, request, news] = receive();
    services = news ?? services;
    const guest = { services, failure: undefined, hasEnded: false };
    let reason;
    try {
      await answer(guest, request);
    } catch (error) {
      reason = reasonOf(guest.failure ?? error);
    }
    guest.hasEnded = true;
    if (reason === undefined) send("done");
    else send("failed", reason); // the server ends this process: the guest left it in any state
  }
}

main();
