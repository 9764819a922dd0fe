"""The HTTP port of an application: what a client sends, what it gets, what it cannot do."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from refllm.api import InvalidInput
from refllm.engine import LocalEngine
from refllm.wasm.host import Host
from refllm.wasm.http.application import Application, open_application
from refllm.wasm.http.port import Port
from tests.conftest import HUNG_SECONDS
from tests.guests.build import component

pytestmark = pytest.mark.network  # the SDK that the guest is built with

LIMIT = 1000
ANY_PORT = ("127.0.0.1", 0)
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


@pytest.fixture(scope="module")
def port(application: Application) -> Iterator[Port]:
    engines = {id_: LocalEngine(allowed_models=[]) for id_ in application.components}
    with (
        Host() as host,
        Port(application, host, engines, ANY_PORT, max_body_bytes=LIMIT) as port,
    ):
        yield port


@pytest.fixture
def client(port: Port) -> Iterator[http.client.HTTPConnection]:
    address = port.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=HUNG_SECONDS)) as connection:
        yield connection


def echoed(client: http.client.HTTPConnection) -> Any:
    response = client.getresponse()
    assert response.status == 200
    return json.loads(response.read())


def raw(port: Port, request: bytes) -> bytes:
    """Everything that comes back for these bytes."""
    host, _, number = port.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(number)), timeout=HUNG_SECONDS) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
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


def test_a_client_cannot_say_what_only_the_host_may(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/echo", headers={"Spin-Client-Addr": "10.0.0.1:1"})
    assert echoed(client)["headers"]["spin-client-addr"].startswith("127.0.0.1:")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no address of IPv6")
def test_an_address_of_ipv6_is_in_brackets(application: Application, host_of: Host) -> None:
    engines = {id_: LocalEngine(allowed_models=[]) for id_ in application.components}
    with Port(application, host_of, engines, ("::1", 0)) as port:
        address = port.url.removeprefix("http://")
        with closing(http.client.HTTPConnection(address, timeout=HUNG_SECONDS)) as client:
            client.request("GET", "/echo")
            headers = echoed(client)["headers"]
    assert headers["host"] == address
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
def test_a_path_without_a_route_is_not_found(
    path: str, application: Application, host_of: Host
) -> None:
    routes = tuple(route for route in application.routes if route.component == "echo")
    only_echo = Application({"echo": application.components["echo"]}, routes)
    engines = {"echo": LocalEngine(allowed_models=[])}
    with Port(only_echo, host_of, engines, ANY_PORT) as port:
        answer = raw(port, f"GET {path} HTTP/1.0\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert f"no route of the application matches {path}".encode() in answer


@pytest.fixture
def host_of() -> Iterator[Host]:
    with Host() as host:
        yield host


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


def test_what_a_guest_prints_is_logged(
    client: http.client.HTTPConnection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "refllm.wasm")
    client.request("GET", "/say?hello")
    assert echoed(client) is None
    assert "probe| hello\nprobe| hello" in caplog.text


@pytest.mark.parametrize(
    ("head", "status", "said"),
    [
        (b"Content-Length: 1001\r\n", b"413", b"longer than the limit of 1000 bytes"),
        (b"Content-Length: 99999999999999999999999\r\n", b"400", b"one whole number"),
        (b"Content-Length: -1\r\n", b"400", b"one whole number"),
        (b"Content-Length: 1\r\nContent-Length: 2\r\n", b"400", b"one whole number"),
        (b"Content-Length: 5\r\n", b"400", b"the body ends early"),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"400", b"both"),
        (b"Transfer-Encoding: gzip\r\n", b"501", b"gzip"),
    ],
)
def test_a_body_that_cannot_be_taken_is_refused(
    head: bytes, status: bytes, said: bytes, port: Port
) -> None:
    answer = raw(port, b"POST /echo HTTP/1.1\r\nHost: x\r\n" + head + b"\r\nabc")
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert said in answer
    assert b"connection: close\r\n" in answer


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        (b"3\r\nabc\r\n0\r\n\r\n", b"200"),
        (b"3;name=value\r\nabc\r\n0\r\nTrailer: x\r\n\r\n", b"200"),
        (b"3e9\r\n", b"413"),
        (b"x\r\nabc\r\n0\r\n\r\n", b"400"),
        (b"2\r\nabc\r\n0\r\n\r\n", b"400"),
        (b"ffffffffffffffffff\r\n", b"400"),
        (b"3\r\nab", b"400"),
    ],
)
def test_chunks_are_read_as_rfc_9112_has_them(chunks: bytes, status: bytes, port: Port) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
    assert raw(port, head + b"\r\n" + chunks).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    ("target", "uri"),
    [
        (b"http://example.com/echo?x", "/echo?x"),
        (b"//echo", "/echo"),
    ],
)
def test_a_target_that_is_no_plain_path_is_understood(target: bytes, uri: str, port: Port) -> None:
    answer = raw(port, b"GET " + target + b" HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["uri"] == uri


def test_a_port_that_is_taken_is_named(port: Port, application: Application, host_of: Host) -> None:
    taken = int(port.url.rpartition(":")[2])
    engines = {id_: LocalEngine(allowed_models=[]) for id_ in application.components}
    with pytest.raises(InvalidInput, match=f"cannot listen on 127.0.0.1:{taken}: "):
        Port(application, host_of, engines, ("127.0.0.1", taken))


def test_draining_ends_an_idle_connection(application: Application, host_of: Host) -> None:
    engines = {id_: LocalEngine(allowed_models=[]) for id_ in application.components}
    with Port(application, host_of, engines, ANY_PORT) as port:
        address = port.url.removeprefix("http://")
        with closing(http.client.HTTPConnection(address, timeout=HUNG_SECONDS)) as client:
            client.request("GET", "/remember")
            assert echoed(client) == 1
            assert port.drain(HUNG_SECONDS)
