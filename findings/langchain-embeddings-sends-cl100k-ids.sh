#!/usr/bin/env bash
# One would guess that OpenAIEmbeddings with another server's base_url and model sends texts.
# It sends token ids; where tiktoken does not know the model's name, those of cl100k_base, without
# a warning.
# It matters for servers that take ids for those of their own model: they answer the vector of
# another text.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet langchain-openai==1.7.4 langchain-core==1.8.3 openai==3.57.0 tiktoken==0.14.0
"$folder/venv/bin/pip" install --quiet --no-deps llama-index-core==0.14.25
# llama-index-core is here for a file that it has: the ranks of cl100k_base as tiktoken keeps them.
ranks=$(find "$folder/venv" -name 9b5ad71b2ce5302211f9c61530b329a4922fc6a4)
export TIKTOKEN_CACHE_DIR=${ranks%/*} NO_PROXY=localhost LANGSMITH_TRACING=false
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import http.server
import json
import logging
import sys
import threading
import urllib.parse
import warnings
from importlib.metadata import version

import tiktoken
from langchain_openai import OpenAIEmbeddings

VECTORS = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.0, 1.0]}],
    "model": "local",
    "usage": {"prompt_tokens": 1, "total_tokens": 1},
}


class Server(http.server.BaseHTTPRequestHandler):
    """Keep what is asked, and give the canned answer."""

    asked = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, body))
        answer = json.dumps(VECTORS).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        """Print nothing."""


server = http.server.ThreadingHTTPServer(("localhost", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = urllib.parse.urlunsplit(("http", f"localhost:{server.server_port}", "/v1", "", ""))


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


class Kept(logging.Handler):
    """Keep what is logged as a warning or worse."""

    records = []

    def emit(self, record):
        self.records.append(record)


names = ("langchain-openai", "langchain-core", "openai", "tiktoken")
print(*(f"{name} {version(name)}" for name in names), sep=", ")
logging.getLogger().addHandler(Kept(logging.WARNING))
text = "A cat."
options = {"model": "tiny-embed", "base_url": url, "api_key": "none"}
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    OpenAIEmbeddings(**options).embed_query(text)
OpenAIEmbeddings(**options, check_embedding_ctx_length=False).embed_query(text)
by_default, unchecked = (body["input"] for _, body in Server.asked)
print(f"{text!r} is sent as {by_default}; with check_embedding_ctx_length=False as {unchecked}")
ids = tiktoken.get_encoding("cl100k_base").encode(text)
expect(by_default == [ids], "the default no longer sends ids of cl100k_base")
expect(not warned and not Kept.records, "there is a warning")
expect(unchecked == [text], "check_embedding_ctx_length=False no longer sends the text")
print("seen: ids of OpenAI's tokenizer are sent for a model that is not OpenAI's, without a warning")
PY
