"""wasm/http."""
