#!/usr/bin/env bash
# One would guess that encode of tokenizers, whose work is all in Rust, lets other Python threads
# run meanwhile, or that encode and encode_batch of one text do the same.
# encode holds Python's global lock for the whole call; encode_batch of the same single text lets go
# of it for most of its time. The ids are equal.
# It matters for servers: one long text keeps every other thread waiting, health checks included,
# also when the call is made in a thread of its own.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
import threading
import time
from importlib.metadata import version

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


def turns_beside(call):
    """Return how often a thread that sleeps for a millisecond ran while `call` did, and its result."""
    turns, is_over = 0, threading.Event()

    def count():
        nonlocal turns
        while not is_over.is_set():
            time.sleep(0.001)
            turns += 1

    beside = threading.Thread(target=count)
    beside.start()
    time.sleep(0.05)
    before, start = turns, time.perf_counter()
    result = call()
    seconds, turns_meanwhile = time.perf_counter() - start, turns - before
    is_over.set()
    beside.join()
    return turns_meanwhile, seconds, result


print(f"tokenizers {version('tokenizers')}")
letters = "abcdefghijklmnopqrstuvwxyz"
vocabulary = {"[UNK]": 0} | {prefix + one: 1 + i + 26 * k for k, prefix in enumerate(("", "##"))
                             for i, one in enumerate(letters)}
tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
tokenizer.normalizer = normalizers.BertNormalizer()
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
text = "the quick brown fox jumps over the lazy dog " * 20_000
alone, seconds_alone, one = turns_beside(lambda: tokenizer.encode(text))
batch, seconds_batch, [same] = turns_beside(lambda: tokenizer.encode_batch([text]))
print(f"encode: {seconds_alone:.1f} s, in which another thread had {alone} turns")
print(f"encode_batch: {seconds_batch:.1f} s, in which another thread had {batch} turns")
expect(one.ids == same.ids, "the ids differ")
expect(alone < 10, "encode lets other threads run")
expect(batch > 10 * max(alone, 1), "encode_batch lets no other thread run")
print("seen: encode keeps the lock, encode_batch does not")
PY
