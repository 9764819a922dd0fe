"""wasm/wasi."""
