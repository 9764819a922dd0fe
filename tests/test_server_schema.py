"""schemathesis against the server's own OpenAPI schema: thousands of requests that it invents."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from refllm.spin.server.process import running_server
from tests.server import ask

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

FEWEST_REQUESTS = 2000
MODELS = {"/infer": "tiny-chat", "/embed": "tiny-embed", "/v1/embeddings": "tiny-embed"}
COUNT = re.compile(rb'refllm_requests_total\{route="[^"]+",status="(\d+)"\} ([0-9.]+)')

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(["--max-tokens", "8"]) as server:
        yield server.url


@pytest.fixture(scope="module")
def api(url: str) -> object:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")

    @schema.hook
    def map_body(context, body):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        """Half of the models that are invented are ones that are here: else nothing is computed."""
        if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body) % 2:
            body["model"] = MODELS.get(context.operation.path, "tiny-chat")
        return body

    return schema


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_answered_otherwise_than_the_schema_says(case) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    case.call_and_validate()


def test_there_were_enough_requests_and_no_500(url: str) -> None:
    counted = COUNT.findall(ask(url, "/metrics").body)
    assert sum(float(n) for _, n in counted) >= FEWEST_REQUESTS
    assert [status for status, _ in counted if status == b"500"] == []
