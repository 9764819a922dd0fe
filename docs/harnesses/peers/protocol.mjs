// The loop of a harness in JavaScript, for the engines of docs/peers.md; it needs no package.
// Node finds an engine beside the file that imports it, so both files go to where it is installed.
// Engines print to standard output, even past console.log. Answers are written to descriptor 3:
//
//     sh -c 'exec node "$0" "$@" 3>&1 1>&2' HARNESS.mjs ARGUMENT …
//
//     import { Skip, serve } from "./protocol.mjs";

import { readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";

export class Skip extends Error {}

export const greedyOnly = (params) => {
  if (params.temperature > 0 && params.max_tokens > 0) throw new Skip("its random numbers are others");
};

function versionOf(name) {
  const file = join(import.meta.dirname, "node_modules", name, "package.json");
  return JSON.parse(readFileSync(file, "utf8")).version;
}

async function outcome(answer, input) {
  try {
    return { result: await answer(input) };
  } catch (error) {
    return error instanceof Skip ? { skip: error.message } : { error: String(error) };
  }
}

// Answer cases until the stop message. `groups` has a function for each group, which may be async.
export async function serve(name, groups) {
  const implementation = { name, version: versionOf(name), language: "JavaScript" };
  for await (const line of createInterface({ input: process.stdin })) {
    const message = JSON.parse(line);
    if (message.cmd === "stop") break;
    const reply =
      message.cmd === "start"
        ? { version: 1, implementation, groups: Object.keys(groups) }
        : { id: message.id, ...(await outcome(groups[message.group], message.input)) };
    writeSync(3, `${JSON.stringify(reply)}\n`);
  }
  process.exit();
}
