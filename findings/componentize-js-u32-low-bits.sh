#!/usr/bin/env bash
# One would guess that a number from 0 to 4294967295 that JavaScript passes for a u32 of a component's
# import arrives as that number.
# From 2147483648 on, componentize-js passes the low 32 bits of the number's float64: 2147483648
# arrives as 0, 4294967295 as 4292870144. Smaller numbers arrive as they are, and no error is raised.
# It matters for every interface with a u32, such as the token counts and top-k of Spin's llm.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet wasmtime==50.0.1
cd "$folder"
echo '{"private": true, "type": "module"}' > package.json
npm install --silent --no-audit --no-fund @bytecodealliance/componentize-js@0.23.0
cat > world.wit <<'WIT'
package local:numbers;

world guest {
  import send: func(n: u32);
  export run: func();
}
WIT
cat > guest.js <<'JS'
import send from "send";

export function run() {
  for (const n of [2147483647, 2147483648, 4294967295]) send(n);
}
JS
cat > build.mjs <<'JS'
import { readFile, writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const { component } = await componentize(await readFile("guest.js", "utf8"), {
  witPath: "world.wit",
  worldName: "guest",
  disableFeatures: ["stdio", "random", "clocks", "http", "fetch-event"],
});
await writeFile("guest.wasm", component);
JS
node build.mjs
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import struct
import sys
from importlib.metadata import version

from wasmtime import Engine, Store
from wasmtime.component import Component, Linker

SENT = [2147483647, 2147483648, 4294967295]


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


package = pathlib.Path("node_modules/@bytecodealliance/componentize-js/package.json")
componentizer = json.loads(package.read_text())["version"]
print(f"componentize-js {componentizer}, wasmtime {version('wasmtime')}")
engine = Engine()
store, linker, arrived = Store(engine), Linker(engine), []
with linker.root() as root:
    root.add_func("send", lambda _store, n: arrived.append(n))
component = Component(engine, pathlib.Path("guest.wasm").read_bytes())
linker.instantiate(store, component).get_func(store, "run")(store)
for sent, got in zip(SENT, arrived, strict=True):
    print(f"JavaScript sends {sent}: {got} arrives")
low_bits = [struct.unpack("<II", struct.pack("<d", n))[0] for n in SENT]
expect(arrived[0] == SENT[0], "2147483647 no longer arrives")
expect(arrived[1:] == low_bits[1:], "what arrives is not the low half of the float64")
print("seen: a u32 of 2147483648 or more arrives as the low 32 bits of its float64")
PY
