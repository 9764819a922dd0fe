"""Spin's runtime configuration: which engine answers the Serverless AI requests of an application.

    [llm_compute]                    [llm_compute]
    type = "spin"                    type = "remote_http"
                                     url = "http://127.0.0.1:3000"
                                     auth_token = "secret"
                                     api_type = "open_ai"     # or "default", which it is anyway

Without the table it is `spin`, the engine of this machine, whose models are in `ai-models` of the
folder that the file's `state_dir` names, `.spin` unless it does. Spin passes over a key that it
does not know inside the table; here it is an error. All else in the file is Spin's business.
Sources: https://spinframework.dev/v4/dynamic-configuration, and Spin's crates factor-llm and
runtime-config.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.interface import Engine
from refllm.spin.dialects import API_TYPES
from refllm.spin.remote import RemoteEngine
from refllm.spin.toml import read_toml, table_of

__all__ = ["engine_from_runtime_config"]

TABLE = "llm_compute"
KEYS: Mapping[str, frozenset[str]] = {
    "spin": frozenset({"type"}),
    "remote_http": frozenset({"type", "url", "auth_token", "api_type"}),
}


def engine_from_runtime_config(path: Path) -> Engine:
    """The engine that the runtime configuration at `path` asks for.

    Errors: `LlmRuntimeError` naming the file, and the key where one is wrong.
    """
    document = read_toml(path)
    table = table_of(path, TABLE, document)
    # An empty table is no missing one: Spin wants a type in it.
    type_ = _one_of(path, table, "type", KEYS) if TABLE in document else "spin"
    for key in table:
        if key not in KEYS[type_]:
            allowed = ", ".join(sorted(KEYS[type_]))
            raise _wrong(
                path, f"{TABLE}.{key:.80}", f"is not known; for {type_} there is {allowed}"
            )
    return _remote_engine(path, table) if type_ == "remote_http" else _local_engine(path, document)


def _remote_engine(path: Path, table: Mapping[str, Any]) -> RemoteEngine:
    url, auth_token = _text(path, table, "url"), _text(path, table, "auth_token")
    api_type = _one_of(path, table, "api_type", API_TYPES) if "api_type" in table else "default"
    try:
        return RemoteEngine(url, auth_token=auth_token, api_type=api_type)
    except InvalidInput as error:
        raise LlmRuntimeError(f"{path}: {TABLE}: {error}") from error


def _local_engine(path: Path, document: Mapping[str, Any]) -> Engine:
    # Imported here, not above: it brings numba, and whoever asks another machine needs none.
    from refllm.engine import LocalEngine
    from refllm.models.find import default_roots

    state_dir = document.get("state_dir", "")
    if not isinstance(state_dir, str):
        raise _wrong(path, "state_dir", "must be text, the name of a folder")
    if not state_dir:
        return LocalEngine()
    # As in Spin, the folder is seen from where the program runs, not from where the file is.
    return LocalEngine(roots=[Path(state_dir).absolute() / "ai-models", *default_roots()])


def _one_of(path: Path, table: Mapping[str, Any], key: str, known: Mapping[str, object]) -> str:
    value = _text(path, table, key)
    if value not in known:
        allowed = " or ".join(f'"{name}"' for name in known)
        raise _wrong(path, f"{TABLE}.{key}", f"must be {allowed}, got {value!r:.80}")
    return value


def _text(path: Path, table: Mapping[str, Any], key: str) -> str:
    # What stands there is not shown, because it may be a token without its quotes.
    if key not in table:
        raise _wrong(path, f"{TABLE}.{key}", "is missing")
    if not isinstance(table[key], str):
        raise _wrong(path, f"{TABLE}.{key}", "must be text in quotes")
    return str(table[key])


def _wrong(path: Path, key: str, problem: str) -> LlmRuntimeError:
    return LlmRuntimeError(f"{path}: {key} {problem}")
