#!/usr/bin/env bash
# One would guess that str() of the exception for a status of 400 says the same in openai 2 and 3.
# In 2.54.0 it has the repr of the answer's whole body, in 3.57.0 only the message of the error.
# It matters for programs and logs that look for a code, a param or a field of the server's own in
# the text: with the newer version it is only in the exception's attributes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openai==2.54.0
python3 -m venv "$folder/newer"
"$folder/newer/bin/pip" install --quiet openai==3.57.0
export NO_PROXY=localhost
cd "$folder"
cat > ask.py <<'PY'
import http.server
import json
import threading
import urllib.parse

from openai import BadRequestError, OpenAI

ERROR = {"message": "tools is refused", "param": "tools", "code": "invalid-input"}


class Server(http.server.BaseHTTPRequestHandler):
    """Keep what is asked, and give the canned answer."""

    asked = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, body))
        answer = json.dumps({"error": ERROR}).encode()
        self.send_response(400)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        """Print nothing."""


server = http.server.ThreadingHTTPServer(("localhost", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = urllib.parse.urlunsplit(("http", f"localhost:{server.server_port}", "/v1", "", ""))

try:
    OpenAI(base_url=url, api_key="none").embeddings.create(model="local", input="A cat.")
except BadRequestError as error:
    print(str(error))
    print(error.param, error.code, error.body == ERROR)
PY
older=$("$folder/venv/bin/python" ask.py)
newer=$("$folder/newer/bin/python" ask.py)
echo "str(error), then error.param, error.code, and whether error.body is the error of the answer"
echo "openai 2.54.0:"
echo "$older"
echo "openai 3.57.0:"
echo "$newer"
body="{'error': {'message': 'tools is refused', 'param': 'tools', 'code': 'invalid-input'}}"
attributes=$'\ntools invalid-input True'
[ "$older" = "Error code: 400 - $body$attributes" ] || { echo "CHANGED: the older text"; exit 1; }
[ "$newer" = "Error code: 400 - tools is refused$attributes" ] ||
    { echo "CHANGED: the newer text"; exit 1; }
echo "seen: the text of an error has the whole body in one version, the message in the other"
