"""spin.toml, and Spin's runtime configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from refllm.spin.manifest import read_manifest
from refllm.spin.runtime_config import engine_from_runtime_config
from tools.attack.mutate import damaged_bytes, damaged_json
from tools.attack.target import Input, Target
from tools.attack.toml_text import toml_text

__all__ = ["TARGET"]

MANIFEST: Mapping[str, Any] = {
    "spin_manifest_version": 2,
    "application": {"name": "a", "version": "0.1.0", "authors": ["me"], "trigger": {"type": "x"}},
    "variables": {"greeting": {"default": "hi"}, "secret": {"required": False, "secret": True}},
    "trigger": {
        "http": [
            {"route": "/...", "component": "hello"},
            {"route": "/users/:id", "component": {"source": "b.wasm", "ai_models": ["x"]}},
            {"route": {"private": True}, "component": "other", "id": "there"},
        ],
        "redis": [{"channel": "a", "component": "other"}],
    },
    "component": {
        "hello": {
            "source": "a.wasm",
            "ai_models": ["llama2-chat", "all-minilm-l6-v2"],
            "files": ["data/**/*.txt", "one.txt", {"source": "data", "destination": "/there"}],
            "exclude_files": ["**/two.txt"],
            "environment": {"A": "b"},
            "variables": {"greeting": "{{ greeting }}, you"},
        },
        "other": {"source": "b.wasm", "build": {"command": "make", "watch": ["src/**"]}},
    },
}
OLDER: Mapping[str, Any] = {
    "spin_manifest_version": "1",
    "name": "a",
    "trigger": {"type": "http", "base": "/base"},
    "variables": {"a": {"default": ""}},
    "component": [
        {
            "id": "hello",
            "source": "a.wasm",
            "ai_models": ["llama2-chat"],
            "config": {"a": "{{a}}"},
            "trigger": {"route": "/x/..."},
        },
        {"id": "other", "source": "b.wasm", "trigger": {"route": "/y"}},
    ],
}
CONFIGS: Sequence[Mapping[str, Any]] = (
    {"state_dir": ".spin", "llm_compute": {"type": "spin"}},
    {"state_dir": "a"},
    {
        "llm_compute": {
            "type": "remote_http",
            "url": "http://127.0.0.1:3000",
            "auth_token": "secret",
            "api_type": "open_ai",
        },
        "key_value_store": {"default": {"type": "spin"}},
    },
)
WRITTEN = b"""spin_manifest_version = 2
[application]
name = "hello"   # a comment
description = '''two
lines'''
[[trigger.http]]
route = "/..."
component = "hello"
[component.hello]
source = "a.wasm"
ai_models = ['llama2-chat',
  "x"]
[component.hello.build]
command = "make"
created = 1979-05-27T07:32:00Z
"""
WRITTEN_CONFIG = b"""[llm_compute]
type = "remote_http"
url = "http://127.0.0.1:3000"
auth_token = "secret" # not "none"
[sqlite_database.default]
type = "spin"
"""


def _prepare(folder: Path) -> None:
    path = folder / "spin.toml"
    path.write_text(toml_text(OLDER))
    _manifest(path)
    path.write_text(toml_text(CONFIGS[0]))
    _runtime_config(path)


def _build(random: Random, folder: Path) -> Input:
    (folder / "data" / "deep").mkdir(parents=True)
    for name in ("one.txt", "data/two.txt", "data/deep/three.txt"):
        (folder / name).write_text(name)
    is_manifest = random.random() < 0.7
    if random.random() < 0.75:
        documents = (MANIFEST, MANIFEST, OLDER) if is_manifest else CONFIGS
        damaged = damaged_json(random, random.choice(documents))
        text = toml_text(damaged if isinstance(damaged, Mapping) else {"component": damaged})
        data = text.encode("utf-8", "surrogatepass")
    elif random.random() < 0.9:
        data = damaged_bytes(random, WRITTEN if is_manifest else WRITTEN_CONFIG)
    else:
        data = _deep(random).encode()
    path = folder / ("spin.toml" if is_manifest else "runtime-config.toml")
    path.write_bytes(data)
    return Input(path, len(data))


def _deep(random: Random) -> str:
    """Tables or lists in each other, by each of TOML's spellings."""
    n = random.choice((10, 100, 300, 1000, 3000))
    key = random.choice(("component", "trigger", "llm_compute", "component.hello.files"))
    return random.choice(
        (
            f"{key} = {'[' * n}{']' * n}\n",
            f"{key} = {'[' * n}\n",
            f"{key} = {'{a=' * n}1{'}' * n}\n",
            f"{key}{'.a' * n} = 1\n",
            f"[{key}{'.a' * n}]\nb = 1\n",
            f"[[{key}{'.a' * n}]]\nb = 1\n",
        )
    )


def _manifest(path: Path) -> bytes:
    from refllm.wasm.http.application import open_application

    manifest = read_manifest(path)
    return f"{manifest!r} {open_application(path.parent, {})!r}".encode("utf-8", "surrogatepass")


def _runtime_config(path: Path) -> bytes:
    engine = engine_from_runtime_config(path)
    kept = sorted(key for key in vars(engine) if key.startswith("_"))
    roots = getattr(engine, "roots", ())
    return f"{type(engine)} {kept} {roots}".encode("utf-8", "surrogatepass")


READERS: Mapping[str, Callable[[Path], bytes]] = {
    "spin.toml": _manifest,
    "runtime-config.toml": _runtime_config,
}


def _read(given: Input) -> bytes:
    path: Path = given.value
    return READERS[path.name](path)


TARGET = Target(
    name="toml",
    what="spin.toml and runtime configurations",
    weight=100,
    build=_build,
    read=_read,
    prepare=_prepare,
)
