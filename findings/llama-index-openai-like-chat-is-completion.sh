#!/usr/bin/env bash
# One would guess that chat() of LlamaIndex's OpenAILike posts the messages to
# /v1/chat/completions.
# Without is_chat_model=True it posts the text "user: Hello!\nassistant: " to /v1/completions.
# It matters for all servers of chat models: the model's own chat template is not used, and the
# answer looks like one of a bad model.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llama-index-llms-openai-like==0.8.1 llama-index-llms-openai==0.8.3
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

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

ANSWERS = {
    "/v1/completions": {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 0,
        "model": "local",
        "choices": [{"index": 0, "text": "Hi!", "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    },
    "/v1/chat/completions": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "local",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi!"},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    },
}


class Server(http.server.BaseHTTPRequestHandler):
    """Keep what is asked, and give the canned answer."""

    asked = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, body))
        answer = json.dumps(ANSWERS[self.path]).encode()
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


names = ("llama-index-llms-openai-like", "llama-index-llms-openai", "llama-index-core", "openai")
print(*(f"{name} {version(name)}" for name in names), sep=", ")
options = {"model": "tiny-chat", "api_base": url, "api_key": "none"}
hello = [ChatMessage(role="user", content="Hello!")]
texts = [
    OpenAILike(**options).chat(hello).message.content,
    OpenAILike(**options, is_chat_model=True).chat(hello).message.content,
]
(path, body), (chat_path, chat_body) = Server.asked
print(f"by default: {path} with {body.get('prompt')!r}")
print(f"with is_chat_model=True: {chat_path} with {chat_body.get('messages')}")
expect(path == "/v1/completions", "chat() asks another route")
expect(body["prompt"] == "user: Hello!\nassistant: ", "chat() sends another prompt")
expect(chat_path == "/v1/chat/completions", "is_chat_model=True asks another route")
expect(texts == ["Hi!", "Hi!"], "the answers differ")
print("seen: chat() asks for the completion of a text that LlamaIndex made of the messages")
PY
