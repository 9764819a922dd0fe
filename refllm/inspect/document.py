"""The document: everything that a page shows of one run, as JSON.

`document.schema.json` describes it. Values of the network are in `arrays`, by the names of
`refllm.inspect.run`: with their numbers in a file, with their shapes only on the live page, which
asks for one when it is shown.

T tokens, L layers, D model width, V vocabulary.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refllm import NUMERICS_REVISION, __version__
from refllm.checkpoints.open import open_weights
from refllm.inspect.beside import Beside
from refllm.inspect.drawing import Draw
from refllm.inspect.quantization import first_matrix, quantization_of
from refllm.inspect.run import Run
from refllm.inspect.stages import explained, token_text
from refllm.kernels.elementwise import rms_norm
from refllm.models.load import BertModel, LlamaModel
from refllm.sampling import softmax, top_k
from refllm.tokenizer.base import Tokenizer
from refllm.trace.report import json_of, lines_of

__all__ = ["FORMAT", "N_CANDIDATES", "document_of", "encoded"]

JSON = dict[str, Any]
Floats = NDArray[np.float32]

FORMAT = "refllm inspect, version 1"
N_CANDIDATES = 40  # at each step
N_LENS = 5  # tokens at each place of the logit lens

# The values that are most looked at come first: a file takes as many as it has room for.
PRIORITY = (
    *("kq_soft_max", "l_out", "attn_out", "ffn_out", "Qcur", "Kcur", "Vcur", "attn_norm"),
    *("ffn_swiglu", "ffn_gelu", "ffn_gate", "ffn_up", "kq", "ffn_norm", "kqv_out", "ffn_inp"),
)


def document_of(run: Run, *, n_array_bytes: int = 0, beside: Beside | None = None) -> JSON:
    """Return the document of a run.

    Args:
        run: The run.
        n_array_bytes: How many bytes the arrays may take in the document: float32 if all of them
            fit, otherwise float16, and in the order of `PRIORITY` as many as fit.
        beside: The second run, if there is one.
    """
    model, tokenizer = run.model, run.model.tokenizer
    weights = open_weights(model.path)
    lens = _lens(run) if isinstance(model, LlamaModel) else None
    return {
        "format": FORMAT,
        "refllm": __version__,
        "numerics_revision": NUMERICS_REVISION,
        "model": _model(run),
        "run": {
            "params": None if run.params is None else asdict(run.params),
            "seed": str(run.engine.seed),
            "profile": run.engine.profile,
            "numerics": run.engine.numerics,
        },
        "texts": [
            {
                "text": text,
                "n_prompt": n_prompt,
                "tokens": [_token(tokenizer, token_id) for token_id in token_ids],
            }
            for text, token_ids, n_prompt in zip(
                run.texts, run.token_ids, run.n_prompt, strict=True
            )
        ],
        "steps": [explained(draw, tokenizer, n_candidates=N_CANDIDATES) for draw in run.draws],
        "lens": lens,
        "residual": [_residual(run, call) for call in range(len(run.texts))],
        "embeddings": _embeddings(run, model) if isinstance(model, BertModel) else None,
        "beside": None if beside is None else _beside(run, beside),
        "matrices": [
            {"name": name, "type": tensor.format.name, "shape": list(tensor.shape)}
            for name, tensor in weights.tensors.items()
            if len(tensor.shape) == 2
        ],
        "quantization": quantization_of(weights.tensors, first_matrix(weights.tensors)),
        "arrays": _arrays(run, n_array_bytes),
    }


def encoded(array: Floats, dtype: str) -> str:
    """Return an array as text: of the numbers all first bytes, all second ones, …, deflated.

    Args:
        array: The numbers.
        dtype: "float16" or "float32"; little-endian.

    Returns:
        Base64. Bytes of equal weight are together because they deflate better.
    """
    plain = array.astype(np.dtype(dtype).newbyteorder("<"))
    planes = np.ascontiguousarray(plain).view(np.uint8).reshape(array.size, -1).T  # [bytes, n]
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode("ascii")


def _arrays(run: Run, n_bytes: int) -> JSON:
    """Return each value's shape, and the numbers of those that fit."""
    found: JSON = {
        name: {"shape": list(value.shape), "dtype": "float32", "data": None}
        for name, value in run.values.items()
        if value.shape[-1] and not name.endswith("result_output")
    }
    for dtype in ("float32", "float16"):
        room = n_bytes
        fitting: dict[str, str] = {}
        for name in sorted(found, key=_priority):
            array = run.values[name].array
            # An estimate that saves time: numbers seldom deflate to a third of their bytes.
            if array is None or array.size * np.dtype(dtype).itemsize // 3 > room:
                continue
            with np.errstate(over="ignore"):
                data = encoded(array, dtype)
            if len(data) <= room:
                room -= len(data)
                fitting[name] = data
        if len(fitting) == len(found) or dtype == "float16":
            for name, data in fitting.items():
                found[name] |= {"dtype": dtype, "data": data}
            break
    return found


def _priority(name: str) -> tuple[int, str]:
    base = name.partition("/")[2].partition("-")[0]
    return (PRIORITY.index(base) if base in PRIORITY else len(PRIORITY), name)


def _model(run: Run) -> JSON:
    model, config = run.model, run.model.config
    if isinstance(model, LlamaModel):
        kind, n_vocab, n_kv_heads = "llama", model.config.n_vocab, model.config.n_kv_heads
    else:
        kind, n_vocab, n_kv_heads = "bert", model.network.n_vocab, config.n_heads
    return {
        "name": run.name,
        "kind": kind,
        "n_vocab": n_vocab,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": n_kv_heads,
        "n_embd": config.n_embd,
        "n_ff": config.n_ff,
    }


def _token(tokenizer: Tokenizer, token_id: int) -> JSON:
    data = tokenizer.token_bytes(token_id)
    piece = tokenizer.piece(token_id)
    is_byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
    return {
        "id": token_id,
        "piece": piece,
        "text": token_text(tokenizer, token_id),
        "bytes": data.hex(),
        "type": "special" if not data else "byte" if is_byte else "text",
    }


def _lens(run: Run) -> JSON:
    """Return the most probable tokens after each layer: its output through the last norm.

    The last layer's are the model's own probabilities.
    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    assert isinstance(run.model, LlamaModel)
    network, tokenizer = run.model.network, run.model.tokenizer
    n_vocab = min(tokenizer.n_vocab, network.config.n_vocab)
    names = ["inp_embd", *(f"l_out-{i}" for i in range(network.config.n_layers))]
    following = [*run.token_ids[0][1:], None]
    rows, ids_seen = [], set()
    for name in names:
        x = run.array(f"0/{name}")  # [T, D]
        with run.engine.computing():
            h = rms_norm(x, network.output_norm, network.config.rms_norm_eps)  # [T, D]
            logits = network.logits(h)[:, :n_vocab].astype(np.float64)  # [T, V]
        row = []
        for scores, after in zip(logits, following, strict=True):
            probabilities = softmax(scores)  # [V]
            ids = top_k(probabilities, N_LENS)
            ids_seen |= set(ids.tolist())
            entry = {"ids": ids.tolist(), "probabilities": probabilities[ids].tolist()}
            if after is not None:
                larger = int((probabilities > probabilities[after]).sum())
                entry["next"] = {"rank": larger + 1, "probability": float(probabilities[after])}
            row.append(entry)
        rows.append({"after": name, "positions": row})
    pieces = {str(token_id): tokenizer.piece(token_id) for token_id in sorted(ids_seen)}
    return {"layers": rows, "pieces": pieces}


def _residual(run: Run, call: int) -> list[JSON]:
    """Return for each layer the lengths of the vectors that its two halves add, for each token."""
    is_llama = isinstance(run.model, LlamaModel)

    def norms(name: str) -> list[float]:
        x = run.array(f"{call}/{name}").astype(np.float64)  # [T, D]
        return [float(norm) for norm in np.sqrt(np.einsum("td,td->t", x, x))]

    layers, before = [], norms("inp_embd" if is_llama else "inp_norm")
    for i in range(run.model.config.n_layers):
        after = norms(f"l_out-{i}")
        layers.append(
            {
                "before": before,
                "attention": norms(f"attn_out-{i}"),
                "feed_forward": norms(f"ffn_out-{i}"),
                "after": after,
            }
        )
        before = after
    return layers


def _embeddings(run: Run, model: BertModel) -> JSON:
    """Return how each text's vector was made, and the cosines of all pairs."""
    assert run.vectors is not None
    vectors = run.vectors.astype(np.float64)  # [N, K]
    lengths = np.sqrt(np.einsum("nk,nk->n", vectors, vectors))  # [N]
    unit = vectors / np.maximum(lengths, 1e-12)[:, np.newaxis]
    pooling = model.sentence.head.pooling
    is_linear = "max" not in pooling.modes
    return {
        "pooling": list(pooling.modes),
        # Pooling is linear, so its result for the identity matrix is its weights.
        "weights": [
            pooling(np.eye(len(ids), dtype=np.float32))[: len(ids)].tolist() if is_linear else None
            for ids in run.token_ids
        ],
        "vectors": run.vectors.tolist(),
        "cosines": (unit @ unit.T).tolist(),
    }


def _beside(run: Run, beside: Beside) -> JSON:
    """Return how the second run differs: the report of `refllm diff`, and both draws of a step."""
    names = (run.name, beside.spec)
    lines = [line for line in lines_of(beside.comparison, names, beside.a) if line.text]
    first_bar = next((i for i, line in enumerate(lines) if line.role == "bar"), None)
    if first_bar is not None:  # the page has a plot instead of the bars and their heading
        del lines[first_bar - 1 :]
    tokenizer, step = run.model.tokenizer, beside.step

    def drawn(draw: Draw | None) -> JSON | None:
        return None if draw is None else explained(draw, tokenizer, n_candidates=N_CANDIDATES)

    return {
        "a": names[0],
        "b": names[1],
        "report": [{"text": line.text, "role": line.role} for line in lines],
        "comparison": json_of(beside.comparison, names),
        "calls": [
            {"text": call.text, "first": call.first, "n_tokens": call.n_tokens}
            for call in beside.a.calls
        ],
        "texts": [
            {
                "n_prompt": text.n_given,
                "tokens": [
                    {"id": token_id, "piece": text.pieces[i] if text.pieces else str(token_id)}
                    for i, token_id in enumerate(text.token_ids)
                ],
            }
            for text in beside.b.texts
        ],
        "step": step,
        "draws": None if step is None else {"a": drawn(run.draws[step]), "b": drawn(beside.draw)},
    }
