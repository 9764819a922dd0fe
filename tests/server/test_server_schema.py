"""schemathesis against the server's own OpenAPI schema: thousands of requests that it invents."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from refllm.testing.server_process import running_server
from tests.conftest import PROJECT
from tests.support.client import ask

pytest.importorskip("schemathesis", reason="pip install schemathesis")

MIN_REQUESTS = 2000
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance"
)
COUNT = re.compile(rb'refllm_requests_total\{route="([^"]+)",status="(\d+)"\} ([0-9.]+)')
ANSWERING = {b"/infer", b"/embed", b"/v1/completions", b"/v1/chat/completions", b"/v1/embeddings"}


@pytest.mark.slow
def test_every_generated_request_is_answered_as_the_openapi_schema_says(tmp_path: Path) -> None:
    schemathesis = Path(sys.executable).with_name("schemathesis")
    modules = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    hooks = {"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "PYTHONPATH": modules}
    with running_server() as server:
        done = subprocess.run(
            [
                *(schemathesis, "run", f"{server.url}/openapi.json", "--checks", CHECKS),
                *("--max-examples", "500", "--generation-database", "none", "--seed", "1"),
            ],
            cwd=tmp_path,  # where schemathesis keeps the requests that failed: .schemathesis
            env={**os.environ, **hooks},
            capture_output=True,
            text=True,
            check=False,
        )
        counted = COUNT.findall(ask(server.url, "/metrics").body)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert sum(float(n) for *_, n in counted) >= MIN_REQUESTS
    assert {route for route, status, _ in counted if status == b"200"} >= ANSWERING
    assert [route for route, status, _ in counted if status == b"500"] == []
