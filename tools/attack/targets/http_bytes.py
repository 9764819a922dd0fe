"""Raw bytes on a socket of a running server."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from random import Random

from refllm.api import InvalidInput
from tools.attack.http_answers import answers_in, check, conversation, expected_methods
from tools.attack.mutate import damaged_bytes
from tools.attack.requests import raw_request
from tools.attack.server_in_thread import check_log, helpers, prepare, serving_port
from tools.attack.target import Input, Target

__all__ = ["TARGET"]

MAX_CERTAIN = 15_000  # bytes: h11 refuses a longer head, or not, as it arrives in one piece or two


def _build(random: Random, _folder: Path) -> Input:
    n_requests = random.choice((1, 1, 1, 1, 2, 3))
    raw = b"".join(
        raw_request(random, is_last=number == n_requests - 1) for number in range(n_requests)
    )
    if random.random() < 0.6:
        raw = damaged_bytes(random, raw, n_most=2)
    if random.random() < 0.01:
        raw = random.randbytes(random.randrange(500))
    cuts = sorted(random.randrange(len(raw) + 1) for _ in range(random.choice((0, 0, 0, 1, 3))))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    return Input(pieces, len(raw))


def _read(given: Input) -> bytes:
    raw = b"".join(given.value)
    methods = expected_methods(raw)
    received = conversation(serving_port(), given.value, methods)
    check_log()
    is_certain = len(given.value) == 1 and len(raw) < MAX_CERTAIN
    if is_certain:
        return check(answers_in(received, methods))
    # Of what comes in pieces, what follows a refusal may take the refusal's answer with it.
    with suppress(InvalidInput):
        check(answers_in(received))
    return b""


TARGET = Target(
    name="http-bytes",
    what="HTTP requests, as bytes, to refllm serve",
    weight=30,
    build=_build,
    read=_read,
    prepare=prepare,
    helpers=helpers,
)
