#!/usr/bin/env bash
# One would guess that OpenAILikeEmbedding of LlamaIndex sends the text that it is given.
# Each newline becomes a space before the text is sent.
# It matters for models whose tokenizers have tokens of newlines: code and lists get other vectors
# than the same text sent by another client, and no server can tell.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llama-index-embeddings-openai-like==0.4.0 llama-index-embeddings-openai==0.6.0
"$folder/venv/bin/pip" install --quiet llama-index-core==0.14.25 openai==2.54.0
export NO_PROXY=localhost
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import http.server
import json
import sys
import threading
import urllib.parse
from importlib.metadata import version

from llama_index.embeddings.openai_like import OpenAILikeEmbedding

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


names = ("llama-index-embeddings-openai-like", "llama-index-embeddings-openai")
names += ("llama-index-core", "openai")
print(*(f"{name} {version(name)}" for name in names), sep=", ")
embedder = OpenAILikeEmbedding(model_name="tiny-embed", api_base=url, api_key="none")
text = "if a:\n    b\n\nc"
embedder.get_text_embedding(text)
embedder.get_query_embedding(text)
embedder.get_text_embedding_batch([text])
sent = [body["input"] for _, body in Server.asked]
print(f"{text!r} is sent as {sent}")
expect(sent == [["if a:     b  c"]] * 3, "another text is sent")
print("seen: newlines become spaces before a text is sent")
PY
