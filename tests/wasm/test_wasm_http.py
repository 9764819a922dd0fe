"""wasi:http as a guest calls it: what it may set, what it may take once, what the host keeps."""

from __future__ import annotations

import threading

import pytest
from wasmtime.component import Variant

from refllm.wasm.guest import Allowance, Guest, GuestFailed, Output, Turn
from refllm.wasm.wasi.http import (
    Fields,
    HttpTypes,
    IncomingBody,
    IncomingRequest,
    OutgoingBody,
    Request,
    ResponseOutparam,
)
from refllm.wasm.wasi.io import Poll


@pytest.fixture
def guest() -> Guest:
    turn = Turn(threading.Lock(), threading.Event(), seconds=60, set_deadline=lambda _: None)
    return Guest(turn=turn, allowance=Allowance(1000), output=Output())


@pytest.fixture
def fields(guest: Guest) -> Fields:
    made = HttpTypes(guest).fields_from_list([("A", b"1"), ("b", b"2"), ("a", b"3")])
    assert isinstance(made, Fields)
    return made


def test_a_header_is_found_by_its_name_in_any_case(fields: Fields) -> None:
    assert fields.get("a") == [b"1", b"3"]
    assert fields.has("B")
    assert not fields.has("c")


def test_setting_replaces_and_appending_adds(fields: Fields) -> None:
    assert fields.set("a", [b"4"]) is None
    assert fields.append("B", b"5") is None
    assert fields.entries() == [("b", b"2"), ("a", b"4"), ("B", b"5")]


def test_deleting_removes_every_value(fields: Fields) -> None:
    assert fields.delete("a") is None
    assert fields.entries() == [("b", b"2")]


def test_a_clone_changes_by_itself(fields: Fields) -> None:
    fields.clone().delete("a")
    assert fields.has("a")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("x", b"one\r\nx-other: two", "invalid-syntax"),
        ("x", b"one\0", "invalid-syntax"),
        ("x y", b"one", "invalid-syntax"),
        ("x:", b"one", "invalid-syntax"),
        ("", b"one", "invalid-syntax"),
        ("Transfer-Encoding", b"chunked", "forbidden"),
        ("connection", b"close", "forbidden"),
    ],
)
def test_a_header_that_would_change_the_connection_is_refused(
    name: str, value: bytes, error: str, fields: Fields, guest: Guest
) -> None:
    assert fields.append(name, value) == Variant(error)
    assert fields.set(name, [value]) == Variant(error)
    assert HttpTypes(guest).fields_from_list([(name, value)]) == Variant(error)


def test_the_headers_of_a_request_cannot_be_changed(guest: Guest) -> None:
    headers = IncomingRequest(guest, Request("GET", "/", (("a", b"1"),))).headers()
    assert headers.delete("a") == Variant("immutable")
    assert headers.has("a")


def test_a_request_s_body_can_be_taken_once(guest: Guest) -> None:
    request = IncomingRequest(guest, Request("GET", "/", (), b"body"))
    body = request.consume()
    assert isinstance(body, IncomingBody)
    assert body.stream() is not None
    assert body.stream() is None
    assert request.consume() is None


def test_a_response_s_body_can_be_taken_once(guest: Guest) -> None:
    response = HttpTypes(guest).new_outgoing_response(HttpTypes(guest).new_fields())
    body = response.body()
    assert isinstance(body, OutgoingBody)
    assert body.write() is not None
    assert body.write() is None
    assert response.body() is None


@pytest.mark.parametrize(
    ("status", "accepted"), [(200, True), (599, True), (100, False), (0, False)]
)
def test_only_a_final_status_is_accepted_for_a_response(
    status: int, accepted: bool, guest: Guest
) -> None:
    response = HttpTypes(guest).new_outgoing_response(HttpTypes(guest).new_fields())
    assert response.set_status_code(status) == Variant("ok" if accepted else "err")
    assert response.status_code() == (status if accepted else 200)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Variant("connection-refused"), "connection-refused$"),
        (Variant("internal-error", "no more tea"), "internal-error: no more tea$"),
    ],
)
def test_a_guest_that_responds_with_an_error_is_named(error: Variant, message: str) -> None:
    outparam = ResponseOutparam()
    outparam.give(error)
    with pytest.raises(GuestFailed, match=f"it responded with the error {message}"):
        outparam.response()


def test_headers_count_as_memory_that_the_host_keeps(fields: Fields) -> None:
    with pytest.raises(GuestFailed, match="more than 1000 bytes to keep"):
        fields.append("x", bytes(b"x" * 1000))


def test_a_header_counts_for_more_than_its_letters(guest: Guest) -> None:
    with pytest.raises(GuestFailed, match="more than 1000 bytes to keep"):
        HttpTypes(guest).fields_from_list([("a", b"")] * 100)


def test_a_response_counts_as_memory_that_the_host_keeps(guest: Guest) -> None:
    body = HttpTypes(guest).new_outgoing_response(HttpTypes(guest).new_fields()).body()
    assert body is not None
    stream = body.write()
    assert stream is not None
    stream.write(bytes(900))
    with pytest.raises(GuestFailed, match="more than 1000 bytes to keep"):
        stream.write(bytes(900))


def test_output_is_kept_up_to_a_limit() -> None:
    output = Output()
    output.write(b"x" * 100_000)
    assert output.text().endswith("x\n… and 34464 bytes more")


def test_polling_nothing_ends_the_guest() -> None:
    with pytest.raises(GuestFailed, match="polled an empty list"):
        Poll().poll([])
