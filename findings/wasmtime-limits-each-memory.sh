#!/usr/bin/env bash
# One would guess that set_limits(memory_size=) of a Store of wasmtime's Python package, which
# "limits … within this store", bounds the memory of what runs in the store.
# It bounds each linear memory by itself: a module with four memories gets four times as much. The
# number of memories has a limit of its own, 10,000 unless it is set.
# It matters for hosts of foreign code: the bound is the product of both limits, and tables have
# a third.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet wasmtime==50.0.1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

from wasmtime import Config, Engine, Instance, Module, Store

PAGE = 65536
N_MEMORIES = 4
LIMIT = 16 * PAGE


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


print(f"wasmtime {version('wasmtime')}")
config = Config()
config.wasm_multi_memory = True
engine = Engine(config)
memories = "".join(f"(memory $m{i} 0)" for i in range(N_MEMORIES))
grow = "".join(
    f'(func (export "grow{i}") (param i32) (result i32) (memory.grow $m{i} (local.get 0)))'
    for i in range(N_MEMORIES)
)
store = Store(engine)
store.set_limits(memory_size=LIMIT)
exports = Instance(store, Module(engine, f"(module {memories} {grow})"), []).exports(store)
beyond = exports["grow0"](store, LIMIT // PAGE + 1)
granted = sum(
    LIMIT for i in range(N_MEMORIES) if exports[f"grow{i}"](store, LIMIT // PAGE) != -1
)
print(f"limit {LIMIT} bytes: one memory asks for a page more: {beyond}")
print(f"{N_MEMORIES} memories of one module ask for {LIMIT} bytes each: {granted} bytes granted")
expect(beyond == -1, "one memory goes beyond the limit")
expect(granted == N_MEMORIES * LIMIT, "the limit is for all memories together")
print("seen: the limit of a store is the limit of each memory")
PY
