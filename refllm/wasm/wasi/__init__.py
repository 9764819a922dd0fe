"""WASI 0.2 for guests: classes whose methods are the functions of WIT, see `refllm.wasm.wit`.

`io.py` has streams and pollables, on which the other three build: `cli.py` (environment, clocks,
random numbers), `filesystem.py` (files to read) and `http.py` (a request and its response). They
implement what the SDKs of Spin call; a guest that calls another function fails with its name.
"""
