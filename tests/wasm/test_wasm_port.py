"""The HTTP port of an application: what a client sends, what it gets, what it cannot do."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from refllm.engine import LocalEngine
from refllm.wasm.guest import Limits
from refllm.wasm.host import Host
from refllm.wasm.http.application import Application, open_application
from refllm.wasm.http.asgi import SpinApp, connection_with
from tests.conftest import HUNG_SECONDS
from tests.guests.build import component
from tests.support.client import eventually
from tests.support.servers import serving
from tests.wasm.hosts import HOSTS

pytestmark = pytest.mark.network  # the SDK that the guest is built with

LIMIT = 1000
CONNECTION = connection_with(max_connections=128, arrival_seconds=30.0)
FORGED = {"Spin-Client-Addr": "10.0.0.1:1", "X-Forwarded-For": "10.0.0.1"}
MANIFEST = """
spin_manifest_version = 2

[[trigger.http]]
route = "/..."
component = "probe"

[[trigger.http]]
route = "/echo/:name/..."
component = "echo"

[component.probe]
source = "probe.wasm"

[component.echo]
source = "probe.wasm"
"""


def has_ipv6() -> bool:
    """Whether something can listen on this machine's own address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Application:
    folder = tmp_path_factory.mktemp("app")
    (folder / "probe.wasm").symlink_to(component("probe"))
    (folder / "spin.toml").write_text(MANIFEST)
    return open_application(folder, {})


@contextmanager
def running(
    application: Application, host: str = "127.0.0.1", kind: type[Host] = Host
) -> Iterator[str]:
    """The address of an application whose components may use no model."""
    engines = {id_: LocalEngine(allowed_models=[]) for id_ in application.components}
    app = SpinApp(application, kind(), engines, max_body_bytes=LIMIT)
    with serving(app, CONNECTION, host) as url:
        yield url


@pytest.fixture(scope="module", params=HOSTS)
def kind(request: pytest.FixtureRequest) -> type[Host]:
    kind: type[Host] = request.param
    return kind


@pytest.fixture(scope="module")
def url(application: Application, kind: type[Host]) -> Iterator[str]:
    with running(application, kind=kind) as url:
        yield url


@contextmanager
def connected(url: str) -> Iterator[http.client.HTTPConnection]:
    address = url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=HUNG_SECONDS)) as connection:
        yield connection


@pytest.fixture
def client(url: str) -> Iterator[http.client.HTTPConnection]:
    with connected(url) as connection:
        yield connection


def echoed(client: http.client.HTTPConnection) -> Any:
    response = client.getresponse()
    assert response.status == 200
    return json.loads(response.read())


def raw(url: str, request: bytes) -> bytes:
    """Everything that comes back for these bytes, until the server hangs up."""
    host, _, number = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(number)), timeout=HUNG_SECONDS) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_request_arrives_as_the_client_sent_it(client: http.client.HTTPConnection) -> None:
    client.request("POST", "/echo?a=%20b", b"\xffbody", {"X-Thing": "one"})
    got = echoed(client)
    assert (got["method"], got["uri"], got["body"]) == ("POST", "/echo?a=%20b", "ÿbody")
    assert got["headers"]["x-thing"] == "one"
    assert got["headers"]["spin-matched-route"] == "/..."


def test_a_body_in_chunks_arrives_whole(client: http.client.HTTPConnection) -> None:
    client.request("POST", "/echo", iter([b"one ", b"two ", b"three"]), encode_chunked=True)
    got = echoed(client)
    assert got["body"] == "one two three"
    assert "transfer-encoding" not in got["headers"]


def test_a_client_cannot_set_the_headers_of_the_host(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/echo", headers=FORGED)
    assert echoed(client)["headers"]["spin-client-addr"].startswith("127.0.0.1:")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no address of IPv6")
def test_an_address_of_ipv6_is_in_brackets(application: Application) -> None:
    with running(application, "::1") as url, connected(url) as client:
        client.request("GET", "/echo")
        headers = echoed(client)["headers"]
    assert headers["host"] == url.removeprefix("http://")
    assert headers["spin-client-addr"].startswith("[::1]:")


def test_several_requests_go_over_one_connection(client: http.client.HTTPConnection) -> None:
    for _ in range(3):
        client.request("GET", "/remember")
        assert echoed(client) == 1


def test_a_head_request_gets_the_headers_alone(client: http.client.HTTPConnection) -> None:
    client.request("HEAD", "/remember")
    response = client.getresponse()
    assert (response.status, response.getheader("content-length")) == (200, "1")
    assert response.read() == b""


def test_the_health_check_needs_no_component(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/.well-known/spin/health")
    response = client.getresponse()
    assert (response.status, response.read()) == (200, b"OK\n")


@pytest.mark.parametrize("path", ["/elsewhere", "/ech%6F/x", "/echo%2Fx"])
def test_a_path_without_a_route_is_not_found(path: str, application: Application) -> None:
    routes = tuple(route for route in application.routes if route.component == "echo")
    with running(Application({"echo": application.components["echo"]}, routes)) as url:
        answer = raw(url, f"GET {path} HTTP/1.0\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert f"no route of the application matches {path}".encode() in answer


def test_a_guest_that_traps_is_a_500_and_the_log_has_its_standard_error(
    client: http.client.HTTPConnection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "refllm.wasm")
    client.request("GET", "/trap")
    response = client.getresponse()
    assert response.status == 500
    assert response.read().startswith(b"refllm: component probe failed: wasm trap: ")
    assert "probe| RuntimeError: this guest traps" in caplog.text


def test_after_a_trap_the_next_request_is_answered(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/trap")
    client.getresponse().read()
    client.request("GET", "/remember")
    assert echoed(client) == 1


def test_the_output_of_a_guest_is_logged(
    client: http.client.HTTPConnection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "refllm.wasm")
    client.request("GET", "/say?hello")
    assert echoed(client) is None
    assert "probe| hello\nprobe| hello" in caplog.text


@pytest.mark.parametrize(
    ("target", "uri"),
    [
        (b"http://example.com/echo?x", "/echo?x"),
        (b"//echo", "/echo"),
    ],
)
def test_a_request_target_that_is_a_url_or_begins_with_two_slashes_is_routed(
    target: bytes, uri: str, url: str
) -> None:
    answer = raw(url, b"GET " + target + b" HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["uri"] == uri


def test_a_component_writes_to_its_client_until_that_has_gone(
    application: Application, kind: type[Host]
) -> None:
    engines = {id_: LocalEngine(allowed_models=[]) for id_ in application.components}
    host = kind(Limits(seconds=HUNG_SECONDS))
    with serving(SpinApp(application, host, engines), CONNECTION) as url:
        with connected(url) as client:
            client.request("GET", "/stream")
            assert client.getresponse().read(3) == b"one"
            assert host.n_guests == 1
        eventually(lambda: host.n_guests == 0)


def test_the_end_of_the_server_ends_an_idle_connection(application: Application) -> None:
    with ExitStack() as stack, running(application) as url:
        client = stack.enter_context(connected(url))
        client.request("GET", "/remember")
        assert echoed(client) == 1
    assert client.sock is None or client.sock.recv(1) == b""
