"""What Spin applications bring: a manifest, a runtime configuration, handlers, remote backends.

`manifest.py` reads spin.toml and `runtime_config.py` the runtime configuration, both by `toml.py`;
`component.py` makes the engine of a component. `remote.py` asks a `remote_http` backend, in the
dialects of `dialects.py`, by `http_client.py`. `shim/` runs Python handlers without WebAssembly.
"""
