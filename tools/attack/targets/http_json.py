"""JSON for each route of a running server."""

from __future__ import annotations

from pathlib import Path
from random import Random
from urllib.parse import quote

from tools.attack.http_answers import answers_in, check, conversation
from tools.attack.mutate import ODD_TEXTS, damaged_json_text
from tools.attack.requests import BODIES, GETS, SCHEMA_BODIES, post
from tools.attack.server_in_thread import check_log, helpers, prepare, serving_port
from tools.attack.target import Input, Target

__all__ = ["TARGET"]

SCHEMAS = 0.004  # of the inputs; each takes a process that tries its grammar
# A longer body is refused while it is still sent, and where the connection then ends, the answer
# may be lost.
MAX_BYTES = 200_000
WEIGHTS = [weight for _, _, weight in BODIES]


def _build(random: Random, _folder: Path) -> Input:
    method, body = "POST", b""
    if random.random() < SCHEMAS:
        path, value = random.choice(SCHEMA_BODIES)
        body = damaged_json_text(random, value)
    elif random.random() < 0.05:
        method, path = "GET", random.choice(GETS)
        if random.random() < 0.5:
            path = f"/v1/models/{quote(random.choice(ODD_TEXTS), safe='')}"
    else:
        [(path, value, _)] = random.choices(BODIES, WEIGHTS)
        body = damaged_json_text(random, value)
    more = "authorization: bearer x\r\n" if random.random() < 0.1 else "user-agent: a\r\n"
    body = body[:MAX_BYTES]
    raw = post(path, body, method=method, more=more)
    return Input(raw, len(raw))


def _read(given: Input) -> bytes:
    received = conversation(serving_port(), [given.value], ["GET"])
    check_log()
    return check(answers_in(received, ["GET"]))


TARGET = Target(
    name="http-json",
    what="JSON for each route of refllm serve",
    weight=30,
    build=_build,
    read=_read,
    prepare=prepare,
    helpers=helpers,
)
