"""Small files that could take long: each is read or refused in time and memory like its size.

A file of up to 100 MB may take a second, and twice its size and 200 MB of memory, whatever is in
it. Faults of this kind took 8 seconds and more, so three times the second is allowed: how fast the
machine is proves nothing.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pytest

from refllm.api import LlmRuntimeError
from refllm.checkpoints.gguf import MAX_HEADER_BYTES, MAX_KEYS, MAX_STRINGS, MAX_TENSORS
from refllm.checkpoints.safetensors import MAX_HEADER_VALUES
from refllm.files.accounting.keys import MAX_KEYS as MAX_KEYS_OF_OBJECT
from refllm.files.accounting.keys import Keys
from refllm.files.reading import MAX_JSON_BYTES, MAX_TOKENIZER_VALUES, MAX_VALUES
from refllm.tokenizer import tokenizer_from_gguf
from tests.conftest import HUNG_SECONDS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork, and no getrusage")

SECONDS = 3
MEGABYTE = 10**6
MEMORY_MB = 200

# What is imported counts for no file. Each file has a process, which begins with the imports'
# memory, and whose resource usage is read at its end.
READER = f"""
import json, os, resource, sys
from pathlib import Path

from refllm.api import LlmError
from refllm.tokenizer import tokenizer_from_folder
from refllm.checkpoints.open import open_weights

unit = 1 if sys.platform == "darwin" else 1024
for name, read in json.load(sys.stdin):
    path = Path(name)
    said_by_child, child = os.pipe()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CPU, ({10 * SECONDS}, {10 * SECONDS}))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        try:
            dict(open_weights=open_weights, tokenizer=tokenizer_from_folder)[read](path)
            said = "read"
        except LlmError as error:
            said = str(error)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        seconds = usage.ru_utime + usage.ru_stime
        answer = [said, seconds, usage.ru_maxrss * unit - before]
        os.write(child, json.dumps(answer).encode())
        os._exit(0)
    os.close(child)
    with os.fdopen(said_by_child) as answer:
        print(answer.read() or json.dumps(["ended by its limit", 0, 0]), flush=True)
    os.waitpid(pid, 0)
"""


class Outcome(NamedTuple):
    """What reading a file came to: "read" or the error's text, and what it took."""

    message: str
    seconds: float
    memory: int


# GGUF

U8, STRING, ARRAY = 0, 8, 9


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def array_key(name: bytes, item_type: int, length: int, items: bytes) -> bytes:
    return string(name) + struct.pack("<IIQ", ARRAY, item_type, length) + items


def gguf(*, keys: list[bytes] | None = None, tensors: list[bytes] | None = None) -> bytes:
    keys = [
        string(b"general.architecture") + struct.pack("<I", STRING) + string(b"llama"),
        *(keys or []),
    ]
    tensors = tensors or []
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))
    return header + b"".join(keys) + b"".join(tensors) + bytes(64)


def many_keys(count: int) -> bytes:
    numbers = (string(b"k%d" % number) + struct.pack("<IB", U8, 0) for number in range(count))
    return gguf(keys=list(numbers))


def many_tensors(count: int) -> bytes:
    """Tensors of no number, so that the file need not hold any."""
    info = struct.pack("<IQIQ", 1, 0, 0, 0)
    return gguf(tensors=[string(b"t%d" % number) + info for number in range(count)])


def many_tensors_of_a_number(count: int) -> bytes:
    infos = (
        string(b"t%d" % number) + struct.pack("<IQIQ", 1, 1, 0, 32 * number)
        for number in range(count)
    )
    return gguf(tensors=list(infos)) + bytes(32 * count)


def many_strings(count: int, text: bytes = b"") -> bytes:
    items = np.zeros(count, [("length", "<u8"), ("text", f"S{max(len(text), 1)}")])
    items["length"], items["text"] = len(text), text
    packed = items.tobytes() if text else items["length"].tobytes()
    return gguf(keys=[array_key(b"k", STRING, count, packed)])


def long_text(text: bytes) -> bytes:
    return gguf(keys=[string(b"k") + struct.pack("<I", STRING) + string(text)])


# JSON and safetensors


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def tensors_of_no_number(count: int) -> bytes:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return safetensors(json.dumps({f"t{number}": entry for number in range(count)}).encode())


def metadata_of_safetensors(count: int) -> bytes:
    texts = {f"{number:x}": "" for number in range(count)}
    return safetensors(json.dumps({"__metadata__": texts}).encode())


def object_with_a_key_twice(n_keys: int) -> bytes:
    keys = [*(f"k{number}" for number in range(n_keys)), f"k{n_keys - 1}"]
    return ("{" + ", ".join(f'"{key}": 0' for key in keys) + "}").encode()


def many_objects(count: int) -> bytes:
    return ("{" + ",".join(f'"{number:x}":{{}}' for number in range(count)) + "}").encode()


def added_tokens(count: int) -> bytes:
    first = len(BERT_TOKENS)
    return json.dumps({f"t{number}": first + number for number in range(count)}).encode()


def special_tokens(count: int) -> bytes:
    tokens = [f"s{number}" for number in range(count)]
    return json.dumps({"additional_special_tokens": tokens}).encode()


def many_lines(count: int) -> bytes:
    return "\n".join([*map(str, range(count)), str(count - 1)]).encode()


READ = "read"
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GGUF_FILES: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "200,000 keys": (
        lambda: many_keys(200_000),
        "200001 metadata keys and 0 tensors; no model needs more than",
    ),
    "60,000 tensors": (
        lambda: many_tensors(60_000),
        "60000 tensors; no model needs more than",
    ),
    "4 million empty strings": (
        lambda: many_strings(4_000_000),
        "metadata arrays of 4000000 items altogether; no model needs more than",
    ),
    "a text of more bytes than a header has": (
        lambda: long_text(bytes(MAX_HEADER_BYTES)),
        f"no model needs more than {MAX_HEADER_BYTES}",
    ),
    "two million strings": (
        lambda: many_strings(2_000_000),
        "metadata arrays of 2000000 strings altogether; no model needs more than",
    ),
    "strings of more bytes than a header has": (
        lambda: many_strings(1_000_000, b"x" * 26),
        f"no model needs more than {MAX_HEADER_BYTES}",
    ),
    "as many keys as there may be": (lambda: many_keys(MAX_KEYS - 1), READ),
    "as many tensors as there may be": (lambda: many_tensors(MAX_TENSORS), READ),
    "as many tensors of a number": (lambda: many_tensors_of_a_number(MAX_TENSORS), READ),
    "as many strings as there may be": (lambda: many_strings(MAX_STRINGS), READ),
    "as many strings, each an object of its own": (
        lambda: many_strings(MAX_STRINGS, "日本".encode()),
        READ,
    ),
    "a text whose characters take four bytes each": (
        lambda: long_text(b"x" * (MAX_HEADER_BYTES - 200) + "\U0001f600".encode()),
        READ,
    ),
}
FOLDER_FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a key of config.json twice": (
        "config.json",
        lambda: object_with_a_key_twice(20_000),
        "the key 'k19999' appears twice",
    ),
    "a config.json of too many objects": (
        "config.json",
        lambda: many_objects(MAX_VALUES // 2),
        f"no such file needs more than {MAX_VALUES}",
    ),
    "an index of as many objects as there may be": (
        "model.safetensors.index.json",
        lambda: many_objects((MAX_VALUES - 1) // 2),
        "weight_map must be an object",
    ),
    "a tensor of model.safetensors twice": (
        "model.safetensors",
        lambda: safetensors(object_with_a_key_twice(20_000)),
        "not a whole safetensors file",
    ),
    "too many texts in a header's metadata": (
        "model.safetensors",
        lambda: metadata_of_safetensors(MAX_HEADER_VALUES),
        f"no such file needs more than {MAX_HEADER_VALUES}",
    ),
    "a header of more bytes than there may be": (
        "model.safetensors",
        lambda: safetensors(b" " * (MAX_JSON_BYTES + 1)),
        f"none needs more than {MAX_JSON_BYTES}",
    ),
    "as many texts in a header's metadata": (
        "model.safetensors",
        lambda: metadata_of_safetensors(MAX_HEADER_VALUES - 3),
        READ,
    ),
    "as many tensors as a header has room for": (
        "model.safetensors",
        lambda: tensors_of_no_number(MAX_HEADER_VALUES // 8),
        READ,
    ),
}


VOCABULARIES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a token of vocab.txt twice": (
        "vocab.txt",
        lambda: many_lines(20_000),
        "has the token '19999' twice",
    ),
    "a tokenizer.json of too many objects": (
        "tokenizer.json",
        lambda: b"[" + b"{}," * (MAX_TOKENIZER_VALUES // 2) + b"{}]",
        f"no such file needs more than {MAX_TOKENIZER_VALUES}",
    ),
    "5,000 added tokens beside 5,000 special ones": (
        "added_tokens.json",
        lambda: added_tokens(5_000),
        READ,
    ),
    "a tokenizer_config.json of too many objects": (
        "tokenizer_config.json",
        lambda: many_objects(MAX_VALUES // 2),
        f"no such file needs more than {MAX_VALUES}",
    ),
}
EXPECTED = {
    **{case: message for case, (_, message) in GGUF_FILES.items()},
    **{case: message for case, (_, _, message) in (FOLDER_FILES | VOCABULARIES).items()},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The file of each case, the folders' files among others that are sound."""
    root = tmp_path_factory.mktemp("files")
    found = {}
    for case, (make, _) in GGUF_FILES.items():
        found[case] = root / f"{case}.gguf"
        found[case].write_bytes(make())
    for case, (name, make, _) in (FOLDER_FILES | VOCABULARIES).items():
        folder = root / case
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "bert"}')
        if name != "model.safetensors.index.json":
            (folder / "model.safetensors").write_bytes(safetensors(b"{}"))
        if case in VOCABULARIES:
            (folder / "vocab.txt").write_text("\n".join(BERT_TOKENS))
            (folder / "tokenizer_config.json").write_bytes(special_tokens(5_000))
        found[case] = folder / name
        found[case].write_bytes(make())
    return found


@pytest.fixture(scope="module")
def outcomes(files: Mapping[str, Path]) -> dict[str, Outcome]:
    """What reading each of the files came to."""
    asked = [
        (
            str(path if path.suffix == ".gguf" else path.parent),
            "tokenizer" if case in VOCABULARIES else "open_weights",
        )
        for case, path in files.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=HUNG_SECONDS,
        check=False,
    )
    assert done.stderr == ""
    answers = [Outcome(*json.loads(line)) for line in done.stdout.splitlines()]
    return dict(zip(files, answers, strict=True))


@pytest.mark.parametrize("case", EXPECTED)
def test_a_file_is_read_or_refused_by_what_it_has_too_much_of(
    case: str, outcomes: Mapping[str, Outcome]
) -> None:
    if EXPECTED[case] == READ:
        assert outcomes[case].message == READ
    else:
        assert EXPECTED[case] in outcomes[case].message


@pytest.mark.parametrize("case", EXPECTED)
def test_a_file_takes_time_and_memory_like_its_size(
    case: str, files: Mapping[str, Path], outcomes: Mapping[str, Outcome]
) -> None:
    n_bytes = files[case].stat().st_size
    assert outcomes[case].seconds < SECONDS * max(1, n_bytes / (100 * MEGABYTE))
    assert outcomes[case].memory < 2 * n_bytes + MEMORY_MB * MEGABYTE


def test_more_keys_than_any_file_has_are_refused_before_a_table_is_searched_for_them() -> None:
    class Unread(dict[str, object]):
        def items(self) -> NoReturn:
            raise AssertionError("the keys are looked at one by one")

    keys = Keys(Path("config.json"), Unread.fromkeys(map(str, range(MAX_KEYS_OF_OBJECT + 1))))
    with pytest.raises(LlmRuntimeError, match=r"config\.json: has 4097 keys, and no such file"):
        keys.account({"*": "any"}, unknown="warn")


def test_a_vocabulary_of_more_tokens_than_any_has_is_refused() -> None:
    tokens = [""] * (2**19 + 1)
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens}
    with pytest.raises(LlmRuntimeError, match=r"tokens has 524289 tokens; no model has more than"):
        tokenizer_from_gguf(metadata, path=Path("file.gguf"))
