"""The transport of the remote engine: deadlines, limits, TLS, and connections that break."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from refllm.api import LlmRuntimeError
from refllm.spin.remote import RemoteEngine
from tests.support.servers import (
    PACE,
    Reply,
    answers,
    drips,
    never_answers,
    never_ends,
    sends,
    serve,
)

BODY = b'{"text": "t", "usage": {"promptTokenCount": 1, "generatedTokenCount": 1}}'
LENGTH = f"content-length: {len(BODY)}\r\n".encode()
CHUNKED = b"HTTP/1.1 200 Said\r\ntransfer-encoding: chunked\r\n\r\n"


def problem(url: str, *, timeout: float = 60.0, connect_timeout: float = 60.0) -> str:
    """What is message of the failure; the first line names the URL, the second says what to do."""
    engine = RemoteEngine(
        url, auth_token="secret", timeout=timeout, connect_timeout=connect_timeout
    )
    with pytest.raises(LlmRuntimeError) as raised:
        engine.infer("m", "p")
    first, second = raised.value.args
    assert first.startswith(f"POST {url}/infer: ")
    assert second
    assert raised.value.__context__ is None, "what it would show may quote the server"
    return f"{first}\n{second}"


@pytest.mark.parametrize(
    "reply",
    [
        sends(b"HTTP/1.1 200 Said\r\n" + LENGTH + b"\r\n" + BODY),
        sends(b"HTTP/1.0 200 Said\r\n\r\n" + BODY),
        sends(CHUNKED + b"5\r\n" + BODY[:5] + b"\r\n44\r\n" + BODY[5:] + b"\r\n0\r\n\r\n"),
        sends(b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 200 Said\r\n" + LENGTH + b"\r\n" + BODY),
    ],
    ids=["with a length", "until the end", "in chunks", "after an interim answer"],
)
def test_an_answer_may_be_framed_in_every_way_of_http(reply: Reply) -> None:
    assert len(BODY) == 5 + 0x44
    with serve(reply) as server:
        assert RemoteEngine(server.url).infer("m", "p").text == "t"


def test_a_request_of_megabytes_arrives_whole() -> None:
    prompt = "x" * 8_000_000
    with serve(sends(b"HTTP/1.1 200 Said\r\n\r\n" + BODY)) as server:
        RemoteEngine(server.url).infer("m", prompt)
    assert prompt.encode() in server.requests[0].body


def test_a_refused_connection_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and it does not listen
        message = problem(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert "the connection is refused\nstart the server, or check the host and the port" in message


def test_an_unknown_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "the host is unknown" in problem("http://absent.example")


def test_a_host_that_the_dns_could_not_name_is_unknown() -> None:
    assert "the host is unknown" in problem("http://a..b")


@pytest.mark.parametrize("reply", [never_answers, drips], ids=["silence", "a byte now and then"])
def test_a_server_that_does_not_finish_in_time_is_left(reply: Reply) -> None:
    with serve(reply) as server:
        message = problem(server.url, timeout=0.2)
    assert "no whole answer came in time (60 s to connect, 0.2 s in all)" in message


def test_a_server_that_reads_nothing_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        engine = RemoteEngine(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout=0.2)
        with pytest.raises(LlmRuntimeError, match="no whole answer came in time"):
            engine.infer("m", "x" * 50_000_000)


def test_a_server_that_reads_slowly_is_left_at_the_deadline() -> None:
    prompt = "x" * 20_000_000
    client_is_gone = threading.Event()

    def sip(listener: socket.socket) -> int:
        """How much the server gets."""
        connection, _ = listener.accept()
        received = 0
        with connection:
            while piece := connection.recv(1 << 18):
                received += len(piece)
                client_is_gone.wait(PACE)
        return received

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        received = pool.submit(sip, listener)
        engine = RemoteEngine(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.2)
        with pytest.raises(LlmRuntimeError, match="no whole answer came in time"):
            engine.infer("m", prompt)
        client_is_gone.set()
        assert received.result() < len(prompt)


def test_an_unanswered_handshake_ends_with_the_time_to_connect() -> None:
    with serve(never_answers) as server:
        message = problem(server.url.replace("http:", "https:"), connect_timeout=0.2)
    assert "no whole answer came in time (0.2 s to connect, 60 s in all)" in message


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 Said\r\ncontent-length: 100\r\n\r\n{",
        CHUNKED + b"5\r\n{",
        CHUNKED + b"1\r\n{\r\n",
    ],
    ids=["at once", "inside the body", "inside a chunk", "between chunks"],
)
def test_a_connection_that_ends_early_is_named_and_nothing_sent_again(sent: bytes) -> None:
    with serve(sends(sent)) as server:
        assert "the connection ended before the answer did" in problem(server.url)
    assert len(server.requests) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a reset may drop what came before")
def test_an_answer_to_half_a_request_is_read() -> None:
    def refuse(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 413 Said\r\ncontent-length: 8\r\n\r\ntoo long")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        pool.submit(refuse, listener)
        engine = RemoteEngine(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(LlmRuntimeError, match="answered 413: too long"):
            engine.infer("m", "x" * 20_000_000)


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-secret\r\n",
        b"HTTP/1.1 2oo secret\r\n\r\n",
        b"HTTP/3 200 secret\r\n\r\n",
        b"HTTP/1.1 200 Said\r\n" + b"x-secret: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 Said\r\nx: " + b"secret" * 20_000,
        CHUNKED + b"-5\r\nsecret",
    ],
    ids=["SSH", "no status", "HTTP/3", "too many headers", "too long a header", "less than none"],
)
def test_a_response_that_is_not_http_is_not_quoted(sent: bytes) -> None:
    with serve(sends(sent)) as server:
        message = problem(server.url)
    assert "the answer is not HTTP/1.1" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    "reply",
    [
        never_ends,
        answers(b" " * 2_000_000),
        sends(CHUNKED + b"1e8480\r\n" + b" " * 2_000_000 + b"\r\n0\r\n\r\n"),
    ],
    ids=["endless", "with a length", "in chunks"],
)
def test_an_answer_over_the_limit_is_cut(reply: Reply) -> None:
    with serve(reply) as server:
        engine = RemoteEngine(server.url, answer_limit=1_000_000)
        with pytest.raises(LlmRuntimeError, match="query result exceeds limit of 1000000 bytes"):
            engine.infer("m", "p")


def test_an_answer_as_long_as_the_limit_is_whole() -> None:
    with serve(answers(BODY)) as server:
        assert RemoteEngine(server.url, answer_limit=len(BODY)).infer("m", "p").text == "t"
        with pytest.raises(LlmRuntimeError, match="exceeds limit"):
            RemoteEngine(server.url, answer_limit=len(BODY) - 1).infer("m", "p")


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key in the same file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command, which makes a certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", "key.pem", "-out", "certificate.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "certificate.pem").read_text())
    return both


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_a_certificate_that_ssl_cert_file_names_is_trusted(
    certificate: Path, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_name("certificate.pem")))
    with serve(answers(BODY), tls=server_tls) as server:
        assert RemoteEngine(server.url).infer("m", "p").text == "t"


def test_an_untrusted_certificate_is_refused(server_tls: ssl.SSLContext) -> None:
    with serve(answers(BODY), tls=server_tls) as server:
        message = problem(server.url)
    assert "the server's certificate is not trusted" in message
    assert "SSL_CERT_FILE" in message
    assert server.requests == []


def test_a_server_without_tls_is_named_where_tls_is_asked_for() -> None:
    def greet(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Not to this port\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        pool.submit(greet, listener)
        message = problem(f"https://127.0.0.1:{listener.getsockname()[1]}")
    assert "TLS fails" in message
    assert "check whether the URL has to begin with http://" in message
