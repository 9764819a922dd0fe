"""Spin components as they are, run in this process: `refllm run`.

application.py   spin.toml: components, routes, variables, files
routes.py        which component answers a path
files.py         the folder that a component sees
engines.py       what answers for its models
port.py          a real HTTP port in front of it all
body.py          a request's body, by its length or in chunks
host.py          an instance of a component for each request
compiled.py      components as machine code, kept on disk
guest.py         what one instance may take, and what the host keeps for it
memory.py        one limit for all its memories and tables
linking.py       a component's imports, given by the host
signatures.py    whether they have the types that it says
wit.py           how WIT's words become Python's
wasi_*.py        WASI 0.2, as far as a guest needs it
spin_*.py        Spin's own interfaces: llm and variables

Needs the extra `wasm`. Of WASI 0.3 nothing is here: wasmtime's Python bindings cannot pass its
streams and futures.
"""
