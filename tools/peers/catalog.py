"""The engines of docs/peers.md: what is installed of each, and how it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["PEERS", "Environment", "Peer", "Server"]


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment of Python, or a folder of npm, with packages of fixed versions.

    Attributes:
        name: The folder's name in the cache.
        packages: As pip or npm installs them, the engine itself first.
        kind: What installs them.
    """

    name: str
    packages: tuple[str, ...]
    kind: Literal["pip", "npm"] = "pip"


@dataclass(frozen=True, slots=True)
class Server:
    """An engine's own HTTP server, asked with OpenAI's protocol.

    Attributes:
        command: Its words after the interpreter; {port}, {gguf} and {hf} are replaced by a free
            port and by the folders of models.
        ready: The path that answers once the server is ready.
        have: The models of the suite that it has.
        model_map: The server's name for a model of the suite.
    """

    command: tuple[str, ...]
    ready: str = "/v1/models"
    have: tuple[str, ...] = ("tiny-chat",)
    model_map: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A row of the page: an engine, and one way to ask it.

    Attributes:
        name: Of the row, of its report, of its harness and of its profile.
        title: The engine as its makers call it.
        about: A sentence: what is asked, and of which files.
        environment: Where it is installed.
        ask: The arguments of its harness, in which {gguf} and {hf} are the folders of models; or
            its server.
        harness: The file in docs/harnesses/peers; none for a server.
        profile: The known deviations: a file of tools/peers/profiles, or a profile of the suite.
        compiles: Whether pip compiles it, which takes minutes.
    """

    name: str
    title: str
    about: str
    environment: Environment
    ask: tuple[str, ...] | Server
    harness: str = ""
    profile: str | None = None
    compiles: bool = False


GGUF = ("{gguf}",)
HF = ("{hf}",)
LLAMAS = ("tiny-chat", "tiny-chat-F32", "tiny-chat-F16", "tiny-chat-BF16", "stories260K")

GGUF_PY = Environment("gguf", ("gguf==0.19.0", "numpy==2.4.6"))
TOKENIZERS = Environment("tokenizers", ("tokenizers==0.23.3",))
TOKENIZERS_JS = Environment("tokenizers-js", ("@huggingface/tokenizers@0.2.0",), "npm")
NODE_LLAMA_CPP = Environment("node-llama-cpp", ("node-llama-cpp@3.21.1",), "npm")
LLAMA_NODE = Environment("llama.node", ("@fugood/llama.node@1.7.15",), "npm")
XLLAMACPP = Environment("xllamacpp", ("xllamacpp==2026.10.11549",))
TINYGRAD = Environment("tinygrad", ("tinygrad==0.14.0",))
MLX = Environment("mlx", ("mlx[cpu]==0.32.4", "numpy==2.4.6"))
MLX_LM = Environment("mlx-lm", ("mlx-lm==0.32.2", "mlx[cpu]==0.32.4", "transformers==5.24.0"))

LLAMA_CPP_PYTHON = Environment("llama-cpp-python", ("llama-cpp-python[server]==0.3.36",))
TRANSFORMERS = Environment(
    "transformers",
    ("transformers==5.24.0", "torch==2.15.0", "sentence-transformers==6.2.0"),
)
CTRANSLATE2 = Environment(
    "ctranslate2", ("ctranslate2==4.8.5", "transformers==5.24.0", "torch==2.13.0")
)
RUST_AI = Environment("rust-ai", ("rust-ai-serving-engine==0.1.6", "tokenizers==0.23.3"))
MISTRALRS = Environment("mistralrs", ("mistralrs==0.9.5",))
GPT4ALL = Environment("gpt4all", ("gpt4all==2.8.2", "tokenizers==0.23.3"))

PEERS: tuple[Peer, ...] = (
    Peer(
        name="transformers",
        title="transformers",
        about="transformers and sentence-transformers in float32, on folders of Hugging Face.",
        environment=TRANSFORMERS,
        harness="../transformers_harness.py",
        ask=tuple(f"{name}={{hf}}/{name}" for name in (*LLAMAS, "tiny-embed", "all-minilm-l6-v2")),
        profile="transformers",
    ),
    Peer(
        name="llama-cpp-python",
        title="llama-cpp-python",
        about="llama.cpp in Python, on GGUF files: blocks, logits, texts and vectors.",
        environment=LLAMA_CPP_PYTHON,
        harness="llama_cpp_py.py",
        ask=GGUF,
        profile="llama-cpp-python",
        compiles=True,
    ),
    Peer(
        name="llama-cpp-python-server",
        title="llama-cpp-python, its server",
        about="The server of llama-cpp-python with tiny-chat in F32.",
        environment=LLAMA_CPP_PYTHON,
        ask=Server(
            (
                *("-m", "llama_cpp.server", "--model", "{gguf}/tiny-chat-F32.gguf"),
                *("--model_alias", "tiny-chat", "--n_ctx", "512", "--n_threads", "1"),
                *("--port", "{port}"),
            )
        ),
        profile="llama.cpp",
        compiles=True,
    ),
    Peer(
        name="xllamacpp",
        title="xllamacpp",
        about="llama.cpp's own server inside a Python process, on GGUF files.",
        environment=XLLAMACPP,
        harness="xllamacpp_py.py",
        ask=GGUF,
        profile="xllamacpp",
    ),
    Peer(
        name="node-llama-cpp",
        title="node-llama-cpp",
        about="llama.cpp in Node.js, on GGUF files.",
        environment=NODE_LLAMA_CPP,
        harness="node_llama_cpp.mjs",
        ask=GGUF,
        profile="node-llama-cpp",
    ),
    Peer(
        name="llama.node",
        title="@fugood/llama.node",
        about="llama.cpp in Node.js and React Native, on GGUF files.",
        environment=LLAMA_NODE,
        harness="llama_node.mjs",
        ask=GGUF,
        profile="llama.node",
    ),
    Peer(
        name="mlx",
        title="mlx",
        about="The tensors that `mx.load` reads from a GGUF file, on the CPU.",
        environment=MLX,
        harness="mlx_py.py",
        ask=(),
        profile="mlx",
    ),
    Peer(
        name="tinygrad",
        title="tinygrad",
        about="Its decoder of GGML's formats, on the CPU; tinygrad compiles with clang.",
        environment=TINYGRAD,
        harness="tinygrad_py.py",
        ask=(),
    ),
    Peer(
        name="gguf",
        title="gguf",
        about="The Python package of the llama.cpp project: GGML's formats in NumPy.",
        environment=GGUF_PY,
        harness="gguf_py.py",
        ask=(),
    ),
    Peer(
        name="tokenizers",
        title="tokenizers",
        about="The library of Hugging Face, on tokenizer.json.",
        environment=TOKENIZERS,
        harness="tokenizers_py.py",
        ask=HF,
    ),
    Peer(
        name="tokenizers-js",
        title="@huggingface/tokenizers",
        about="The tokenizers of transformers.js, on tokenizer.json and tokenizer_config.json.",
        environment=TOKENIZERS_JS,
        harness="tokenizers_js.mjs",
        ask=HF,
        profile="tokenizers-js",
    ),
    Peer(
        name="mlx-lm",
        title="mlx-lm",
        about="Llamas on mlx, on the CPU, from folders of Hugging Face.",
        environment=MLX_LM,
        harness="mlx_lm_py.py",
        ask=HF,
        profile="mlx-lm",
    ),
    Peer(
        name="ctranslate2",
        title="ctranslate2",
        about="Llamas that its converter made from folders of Hugging Face, in float32.",
        environment=CTRANSLATE2,
        harness="ctranslate2_py.py",
        ask=HF,
        profile="ctranslate2",
    ),
    Peer(
        name="rust-ai-serving-engine",
        title="rust-ai-serving-engine",
        about="candle, on GGUF files with a tokenizer.json.",
        environment=RUST_AI,
        harness="rust_ai_py.py",
        ask=(*GGUF, *HF),
        profile="rust-ai-serving-engine",
    ),
    Peer(
        name="mistralrs",
        title="mistralrs",
        about="mistral.rs, on GGUF files with a tokenizer.json.",
        environment=MISTRALRS,
        harness="mistralrs_py.py",
        ask=(*GGUF, *HF),
        profile="mistralrs",
    ),
    Peer(
        name="gpt4all",
        title="gpt4all",
        about="A llama.cpp of 2024, on GGUF files.",
        environment=GPT4ALL,
        harness="gpt4all_py.py",
        ask=(*GGUF, *HF),
        profile="gpt4all",
    ),
)
