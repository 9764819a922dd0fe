"""SHA-256 of what refllm computes, for golden/bits/hashes.json and to compare a machine with it.

    python -m tools.hash_bits kernels                       what this machine's kernels compute
    python -m tools.hash_bits oracle --only llama-Q4_0      what refllm/oracle.py computes
    python -m tools.hash_bits write --stories FILE --minilm DIR

`kernels` and `oracle` print a JSON list of results. `write` writes the golden file, and refuses
where the two differ in any bit: so the published hashes are the oracle's, and the kernels reproduce
them. The oracle has its weights from the gguf package's decoders and shares nothing with the
kernels but the hyperparameters.

FILE is stories260K.gguf, DIR a folder of all-MiniLM-L6-v2; without them their results are left out.
tiny-chat and tiny-embed ship with refllm; all other models are made here, of integers
(tests/support/tiny_formats.py).

Letters: T tokens, V vocabulary, N texts, D vector length.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
from numpy.typing import NDArray

from refllm import oracle
from refllm.bert import Bert
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.open import open_weights
from refllm.interface import NUMERICS_REVISION
from refllm.llama import Llama, Segment
from refllm.models import bundled
from refllm.parameters import Parameters
from tests.support.tiny_formats import STORED_AS, bert_of_bits, llama_of_bits

__all__ = ["Subject", "greedy_by_kernels", "main", "subjects"]

Array: TypeAlias = NDArray[Any]
Sequences: TypeAlias = Sequence[Sequence[int]]
Compute: TypeAlias = Callable[[Path, Sequences], Array]
Result: TypeAlias = Mapping[str, object]

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
OUTPUT = GOLDEN / "bits" / "hashes.json"
TINY_CHAT = bundled.ROOT / "llama" / "tiny-chat.gguf"
TINY_EMBED = bundled.ROOT / "bert" / "tiny-embed.gguf"

BOS = 1
# The last tokens go through the network one at a time, and a few before them together, so that all
# three matrix kernels are seen.
A_FEW, ONE_AT_A_TIME = 4, 5
GREEDY_STEPS = 200
BERT_TEXTS = ((2, 5, 9, 3), (2, 3), (2, 30, 31, 32, 7, 7, 7, 3), tuple(range(20, 60)))


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to hash: a model, the token ids that go in, and two ways to what comes out."""

    name: str
    model: Callable[[], Path]
    token_ids: Sequences
    kernels: Compute
    oracle: Compute


def main() -> None:
    """Print the results, or write them where kernels and oracle agree."""
    parser = argparse.ArgumentParser(description="Hash what refllm computes.")
    parser.add_argument("action", choices=("kernels", "oracle", "write"))
    parser.add_argument("--stories", type=Path, metavar="FILE", help="stories260K.gguf")
    parser.add_argument("--minilm", type=Path, metavar="DIR", help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--only", action="append", metavar="NAME", help="this result; repeatable")
    arguments = parser.parse_args()
    if arguments.action == "write" and not (arguments.stories and arguments.minilm):
        parser.error("write needs --stories and --minilm")
    with tempfile.TemporaryDirectory() as folder:
        found = subjects(Path(folder), arguments.stories, arguments.minilm)
        if arguments.action == "write":
            text = layout([agreed_result(subject) for subject in found])
            revision = f'"numerics_revision": {NUMERICS_REVISION}'
            file = f'{{"$schema": "schema.json", {revision}, "results": {text}}}\n'
            OUTPUT.write_text(file, encoding="ascii")
        else:
            wanted = chosen(found, arguments.only)
            results = [result(subject, getattr(subject, arguments.action)) for subject in wanted]
            sys.stdout.write(f"{layout(results)}\n")


# What is hashed


def subjects(folder: Path, stories: Path | None, minilm: Path | None) -> list[Subject]:
    """Every subject whose model is at hand, or is made in `folder` when it is asked for."""
    found = [
        _logits(
            f"llama-{type_name}",
            partial(llama_of_bits, folder / f"{type_name}.gguf", type_name),
            _spread_ids(18, n_vocab=256),
        )
        for type_name in STORED_AS
    ]
    found.append(_vectors("bert", lambda: bert_of_bits(folder / "bert.gguf"), BERT_TEXTS))
    found.append(_logits("tiny-chat", lambda: TINY_CHAT, _spread_ids(64, n_vocab=1536)))
    found.append(_greedy("tiny-chat-greedy", lambda: TINY_CHAT, [BOS]))
    found.append(_vectors("tiny-embed", lambda: TINY_EMBED, BERT_TEXTS))
    if stories is not None:
        found.append(_logits("stories260K", lambda: stories, _spread_ids(64, n_vocab=512)))
        found.append(_greedy("stories260K-greedy", lambda: stories, [BOS]))
    if minilm is not None:
        found.append(_vectors("all-MiniLM-L6-v2", lambda: minilm, _golden_token_ids()))
    return found


def _logits(name: str, model: Callable[[], Path], token_ids: Sequence[int]) -> Subject:
    return Subject(name, model, [token_ids], logits_by_kernels, logits_by_oracle)


def _greedy(name: str, model: Callable[[], Path], prompt: Sequence[int]) -> Subject:
    return Subject(name, model, [prompt], greedy_by_kernels, greedy_by_oracle)


def _vectors(name: str, model: Callable[[], Path], texts: Sequences) -> Subject:
    return Subject(name, model, texts, vectors_by_kernels, vectors_by_oracle)


def chosen(found: Sequence[Subject], names: Sequence[str] | None) -> list[Subject]:
    """The subjects with these names, all where none is named; ends the program at a strange one."""
    if names is None:
        return list(found)
    strange = set(names) - {subject.name for subject in found}
    if strange:
        raise SystemExit(f"nothing here gives the result {', '.join(sorted(strange))}")
    return [subject for subject in found if subject.name in names]


def _spread_ids(n: int, *, n_vocab: int) -> list[int]:
    """1, 2, 5, 10, 17, … around the vocabulary: BOS, then few ids twice."""
    return [(i * i + 1) % n_vocab for i in range(n)]


def _golden_token_ids() -> list[list[int]]:
    """The golden texts' token ids, cut where tokenizer.json cuts."""
    path = GOLDEN / "embeddings" / "all-minilm-l6-v2.json"
    texts = json.loads(path.read_text(encoding="utf-8"))["texts"]
    return [text["embeddings"][0]["token_ids"] for text in texts]


# By the kernels


def _open_llama(path: Path) -> Llama:
    weights = open_weights(path)
    return Llama(llama_config(weights), Parameters(weights.path, weights.tensors))


def logits_by_kernels(path: Path, sequences: Sequences) -> Array:
    """The logits after each token of the one sequence, float32 [T, V]."""
    [token_ids] = sequences
    llama = _open_llama(path)
    cache = llama.new_cache()
    many, rest = token_ids[: -A_FEW - ONE_AT_A_TIME], token_ids[-A_FEW - ONE_AT_A_TIME :]
    pieces = [many, rest[:A_FEW], *([i] for i in rest[A_FEW:])]
    return np.concatenate([llama.forward([Segment(piece, cache)])[0] for piece in pieces])


def greedy_by_kernels(path: Path, sequences: Sequences) -> Array:
    """The ids of the largest logits, each fed back as the next token, int32 [GREEDY_STEPS]."""
    [prompt] = sequences
    llama = _open_llama(path)
    cache = llama.new_cache()
    logits = llama.forward([Segment(prompt, cache)])[0]
    written = [int(logits[-1].argmax())]
    while len(written) < GREEDY_STEPS:
        logits = llama.forward([Segment(written[-1:], cache)])[0]
        written.append(int(logits[0].argmax()))
    return np.array(written, "<i4")


def vectors_by_kernels(path: Path, sequences: Sequences) -> Array:
    """The embeddings of the texts, all in one call, float32 [N, D]."""
    weights = open_weights(path)
    bert = Bert(bert_config(weights), Parameters(weights.path, weights.tensors))
    return bert.embed(sequences)


# By the oracle


def logits_by_oracle(path: Path, sequences: Sequences) -> Array:
    """As `logits_by_kernels`, in one piece and without a cache."""
    [token_ids] = sequences
    return oracle.llama(llama_config(open_weights(path)), _decoded(path), token_ids)


def greedy_by_oracle(path: Path, sequences: Sequences) -> Array:
    """The id that the oracle chooses at each place of the text that the kernels wrote.

    If these are the kernels' ids, the oracle would have written the same text: its first choice
    is theirs, so its second saw what theirs saw, and so on.
    """
    [prompt] = sequences
    written = greedy_by_kernels(path, sequences)
    logits = logits_by_oracle(path, [[*prompt, *written[:-1].tolist()]])
    choices: Array = logits[len(prompt) - 1 :].argmax(axis=1).astype("<i4")
    return choices


def vectors_by_oracle(path: Path, sequences: Sequences) -> Array:
    """As `vectors_by_kernels`, one text at a time."""
    config, tensors = bert_config(open_weights(path)), _decoded(path)
    return np.stack([oracle.bert(config, tensors, token_ids) for token_ids in sequences])


def _decoded(path: Path) -> dict[str, Array]:
    """The tensors as float32, decoded by the gguf package where they are in a GGUF."""
    if path.is_dir():
        return {name: tensor.array() for name, tensor in open_weights(path).tensors.items()}
    tensors = gguf.GGUFReader(path).tensors
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in tensors
    }


# Results


def agreed_result(subject: Subject) -> Result:
    """The result, the same by kernels and oracle; ends the program where it is not."""
    by_oracle = result(subject, subject.oracle)
    if by_oracle != result(subject, subject.kernels):
        raise SystemExit(f"{subject.name}: kernels and oracle differ; nothing written")
    return by_oracle


def result(subject: Subject, compute: Compute) -> Result:
    """What the golden file says of a subject, computed in one of the ways."""
    path = subject.model()
    values = compute(path, subject.token_ids)
    little_endian = values.astype(values.dtype.newbyteorder("<"))
    return {
        "name": subject.name,
        "weights_sha256": _weights_sha256(path),
        "token_ids": subject.token_ids,
        "type": values.dtype.name,
        "shape": values.shape,
        "sha256": hashlib.sha256(little_endian.tobytes()).hexdigest(),
    }


def _weights_sha256(path: Path) -> str:
    """Of all tensors as they are stored, in the order of their names."""
    tensors = open_weights(path).tensors
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].data.tobytes())
    return digest.hexdigest()


def layout(results: Sequence[Result]) -> str:
    """A JSON list with one result on a line."""
    return "[\n" + ",\n".join(json.dumps(entry) for entry in results) + "\n]"


if __name__ == "__main__":
    main()
