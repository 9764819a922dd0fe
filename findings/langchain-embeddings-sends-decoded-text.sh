#!/usr/bin/env bash
# One would guess that OpenAIEmbeddings with tiktoken_enabled=False sends the ids of the tokenizer
# that it loads, as it sends those of tiktoken, or the text as it is.
# It sends the text that the ids decode to: in lower case where the tokenizer is uncased, and with
# the letters [UNK] for a word that the tokenizer does not know.
# It matters where the server's model has another tokenizer than the folder, and for servers that
# read [UNK] in a text as plain characters.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet langchain-openai==1.7.4 langchain-core==1.8.3 openai==3.57.0
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
export NO_PROXY=localhost LANGSMITH_TRACING=false
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import http.server
import json
import sys
import threading
import urllib.parse
from importlib.metadata import version

from langchain_openai import OpenAIEmbeddings
from transformers import BertTokenizer

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


names = ("langchain-openai", "langchain-core", "openai", "transformers", "tokenizers")
print(*(f"{name} {version(name)}" for name in names), sep=", ")
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "."]
vocabulary = {word: i for i, word in enumerate(words)}
BertTokenizer(vocab=vocabulary, do_lower_case=True).save_pretrained("uncased")
text = "A cat. ZEBRA"
options = {"model": "tiny-embed", "base_url": url, "api_key": "none"}
OpenAIEmbeddings(**options, tiktoken_enabled=False, tiktoken_model_name="uncased").embed_query(text)
((_, body),) = Server.asked
print(f"{text!r} is sent as {body['input']}")
expect(body["input"] == ["a cat. [UNK]"], "another text is sent")
print("seen: the decoded text is sent, in lower case and with [UNK] for a word")
PY
