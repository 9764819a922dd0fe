"""`refllm run`: Spin components, hosted by wasmtime. Needs the extra `wasm`.

`host.py` makes an instance of a component for each request, within the limits of `guest.py`, and
`workers.py` has a process for each; `wasi/` and `spin.py` are the interfaces that a component may
call, `http/` is spin.toml and the HTTP application. Start with `host.py`. wasmtime's Python
bindings cannot pass the streams and futures of WASI 0.3: for such a component the process is one of
Node, by `jco.py` and `wasi3.mjs`. May import `refllm.server` and everything below it.
"""
