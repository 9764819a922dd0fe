"""Access to a server on loopback: local hosts, allowed hosts, and pages of allowed origins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from refllm.testing.server_process import running_server
from tests.support.client import ask, http_connection

PATHS = ["/", "/infer", "/v1/models", "/healthz", "/nothing"]
GUEST = "box.example"
PAGE = "https://page.example"
LOCAL = [
    "localhost",
    "LOCALHOST:81",
    "127.0.0.1",
    "127.8.9.1:5",
    "[::1]",
    "[::1]:81",
    "a.localhost",
]
FOREIGN = [
    "elsewhere.example",
    "elsewhere.example:80",
    "localhost.elsewhere.example",
    "127.0.0.1.elsewhere.example",
    "192.168.0.7",
    "[::2]",
    "[::1",
    "localhost:x",
    "user@elsewhere.example",
    "0.0.0.0",
    "",
]


@pytest.fixture(scope="module")
def open_url() -> Iterator[str]:
    arguments = ["--allow-host", GUEST, "--cors", PAGE, "--token", "secret"]
    with running_server(arguments) as server:
        yield server.url


def status(url: str, path: str, headers: Mapping[str, str]) -> int:
    return ask(url, path, headers=headers).status


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("path", PATHS)
def test_a_foreign_host_is_refused_on_every_path(path: str, host: str, url: str) -> None:
    answer = ask(url, path, headers={"host": host})
    assert answer.status == 403
    assert b"--allow-host" in answer.body


@pytest.mark.parametrize("host", LOCAL)
def test_a_local_host_is_accepted(host: str, url: str) -> None:
    assert status(url, "/healthz", {"host": host}) == 200


@pytest.mark.parametrize("origin", [PAGE, "null", "http://elsewhere.example:8177", "file://"])
def test_a_page_from_elsewhere_is_refused(origin: str, url: str) -> None:
    answer = ask(url, "/infer", {}, headers={"origin": origin})
    assert answer.status == 403
    assert "--cors" in answer.json


def test_a_local_page_gets_no_cors_headers(url: str) -> None:
    answer = ask(url, "/healthz", headers={"origin": "http://localhost:5173"})
    assert answer.status == 200
    assert [name for name in answer.headers if name.startswith("access-control")] == []


def test_a_refused_request_has_the_error_body_of_its_route(url: str) -> None:
    headers = {"host": "elsewhere.example"}
    assert ask(url, "/infer", headers=headers).json.startswith("invalid-input: the header Host")
    error = ask(url, "/v1/models", headers=headers).json["error"]
    assert (error["type"], error["kind"]) == ("permission_error", "invalid-input")


def test_an_allowed_host_is_answered(open_url: str) -> None:
    headers = {"authorization": "bearer secret"}
    assert status(open_url, "/healthz", {**headers, "host": f"{GUEST}:8177"}) == 200
    assert status(open_url, "/healthz", {**headers, "host": f"x.{GUEST}"}) == 403
    assert status(open_url, "/healthz", {"host": GUEST}) == 401


def test_an_allowed_page_gets_cors_headers(open_url: str) -> None:
    headers = {"authorization": "bearer secret", "origin": PAGE}
    answer = ask(open_url, "/v1/models", headers=headers)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    refused = ask(open_url, "/v1/models", headers={"origin": PAGE})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, PAGE)


def test_a_preflight_request_needs_no_token(open_url: str) -> None:
    headers = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    answer = ask(open_url, "/v1/chat/completions", method="OPTIONS", headers=headers)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    other = {**headers, "origin": "https://other.example"}
    assert ask(open_url, "/infer", method="OPTIONS", headers=other).status == 403


def test_a_server_on_all_interfaces_accepts_any_host_with_the_token() -> None:
    with running_server(["--host", "0.0.0.0", "--token", "secret"]) as server:
        local = server.url.replace("0.0.0.0", "127.0.0.1")
        headers = {"host": "elsewhere.example", "authorization": "bearer secret"}
        assert status(local, "/healthz", headers) == 200


# What is there


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/healthz", "/readyz", "/metrics", "/v1/models", "/openapi.json"]
)
def test_head_is_get_without_a_body(path: str, url: str) -> None:
    connection = http_connection(url)
    answers = {}
    for method in ("HEAD", "GET"):  # over one connection: a body would be the next answer
        connection.request(method, path)
        response = connection.getresponse()
        answers[method] = (response.status, response.getheader("content-type"))
        assert bool(response.read()) == (method == "GET")
    connection.close()
    assert answers["HEAD"] == answers["GET"]
    assert answers["GET"][0] == 200


def test_head_is_refused_where_get_is(url: str) -> None:
    assert ask(url, "/infer", method="HEAD").status == 405
    assert ask(url, "/nothing", method="HEAD").status == 404
    assert ask(url, "/healthz", b"{}").headers["allow"] == "GET, HEAD"


def test_the_first_page_has_every_route(url: str) -> None:
    page = ask(url, "/")
    assert page.headers["content-type"].startswith("text/html")
    text = page.body.decode()
    paths = ask(url, "/openapi.json").json["paths"]
    assert len(paths) == 10
    assert [path for path in paths if f" {path}</code>" not in text] == []


def test_the_page_of_the_keys_has_them_all(url: str) -> None:
    from refllm.server.openai_keys import REFUSED, SERVED, WITHOUT_EFFECT

    text = ask(url, "/docs").body.decode()
    keys = [*SERVED, *WITHOUT_EFFECT, *REFUSED]
    assert [key for key in keys if f"<code>{key}</code>" not in text] == []
