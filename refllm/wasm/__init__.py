"""`refllm run`: Spin components, hosted by wasmtime. Needs the extra `wasm`.

`host.py` makes an instance of a component for each request, within the limits of `guest.py`;
`wasi/` and `spin.py` are the interfaces it may call, `http/` is spin.toml and the HTTP application.
`workers.py` runs guests in processes of their own. Start with `host.py`. WASI 0.3 is not supported: wasmtime's Python bindings cannot pass its streams
and futures. May import `refllm.server` and everything below it.
"""
