"""Requests that the server refuses or survives, and how it ends."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from edgemoe.errors import BudgetError, UsageError
from edgemoe.server.server import Server
from edgemoe.server.settings import ServerSettings
from tests.server.client import Client, frames
from tests.support.every_case import every_case

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"messages": HELLO, "temperature": 1.0, "seed": 1, "max_tokens": 240}


def raw(client: Client, *parts: bytes, wait_s: float = 0.0) -> bytes:
    """Everything that a connection gives back to these bytes."""
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(wait_s)
        found = b""
        while received := connection.recv(1 << 16):
            found += received
        return found


def until(happened: Callable[[], bool], seconds: float) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if happened():
            return True
        time.sleep(0.005)
    return False


@pytest.fixture
def slow_client(serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> Client:
    """A server whose every step takes a twentieth of a second."""
    client = serve(ServerSettings(port=0, queue=2), sequences=2)
    engine = client.server.service.model.engine
    step = engine.step

    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.05)
        return step(*arguments, **named)

    monkeypatch.setattr(engine, "step", slow)
    return client


@every_case(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:8080", 200), ("[::1]:80", 200), ("LOCALHOST", 200), ("evil.example", 403),
     ("127.0.0.1.evil.example:80", 403), ("[", 403)],
)  # fmt: skip
def test_another_host_is_refused(client: Client, host: str, status: int) -> None:
    assert client.get("/v1/models", host=host).status == status


def test_pages_of_other_sites_are_refused_and_get_no_cors_headers(client: Client) -> None:
    own = f"http://127.0.0.1:{client.server.port}"
    for origin, status in ((own, 200), ("http://evil.example", 403), ("null", 403), (f"{own}.evil.example", 403)):
        reply = client.get("/v1/models", origin=origin)
        assert reply.status == status
        assert not any(name.lower().startswith("access-control") for name in reply.headers)


def test_an_origin_that_is_allowed_gets_cors_headers(serve: Callable[..., Client]) -> None:
    client = serve(ServerSettings(port=0, origins=["http://app.example"]))
    reply = client.get("/v1/models", origin="http://app.example")
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "http://app.example")
    asked = {"origin": "http://app.example", "access_control_request_method": "POST"}
    assert client.ask("OPTIONS", CHAT, **asked).status == 200
    assert client.get("/v1/models", origin="http://other.example").status == 403


def test_pages_of_this_machine_or_of_all_sites_may_ask_where_that_was_wanted(serve: Callable[..., Client]) -> None:
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
    local, foreign = ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:80"], ["http://localhost.evil.com"]
    client = serve(ServerSettings(port=0, origins=["localhost"]))
    for origin in (*local, *foreign):
        reply = client.ask("OPTIONS", CHAT, origin=origin, **asked)
        assert reply.status == 200
        assert reply.headers["access-control-allow-origin"] == (origin if origin in local else None)
    assert reply.headers["access-control-allow-headers"] is None
    assert client.get("/v1/models", origin=foreign[0]).status == 403
    client = serve(ServerSettings(port=0, origins=["*"], api_keys=["key"]))
    reply = client.ask("OPTIONS", CHAT, origin=foreign[0], **asked)
    assert reply.headers["access-control-allow-origin"] == foreign[0]
    assert reply.headers["access-control-allow-headers"] == "authorization"
    refused = client.get("/v1/models", origin=foreign[0])
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, foreign[0])


def test_a_key_opens_all_but_health(serve: Callable[..., Client]) -> None:
    client = serve(ServerSettings(port=0, api_keys=["first", "second"]))
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "first"}, 401),
        ({"x_api_key": ""}, 401),
        ({"authorization": "Bearer first"}, 200),
        ({"authorization": "bearer second"}, 200),
        ({"x_api_key": "second"}, 200),
    ):
        assert client.get("/v1/models", **headers).status == status
    reply = client.get("/v1/models")
    assert (reply.error["code"], reply.error["type"]) == ("invalid_api_key", "authentication_error")
    assert Client(client.server, "first").post(CHAT, messages=HELLO, max_tokens=1).status == 200


def test_any_key_is_accepted_where_none_is_set(client: Client) -> None:
    assert client.get("/v1/models", authorization="Bearer whatever").status == 200


def test_other_machines_need_a_key() -> None:
    with pytest.raises(UsageError, match="expected an API key"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", api_keys=["k"]).port == 8080
    for key in ("", " ", "ä", "a\nb"):
        with pytest.raises(UsageError, match="printable ASCII"):
            ServerSettings(api_keys=[key])


def test_a_body_that_is_too_large_is_refused_before_it_is_read(serve: Callable[..., Client]) -> None:
    client = serve(ServerSettings(port=0, body_limit_bytes=1000))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n".encode()
    declared = raw(client, head + b"content-length: 5000\r\n\r\n")
    assert declared.startswith(b"HTTP/1.1 413")
    assert b"at most 0 KiB" in declared
    chunked = raw(client, head + b"transfer-encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n")
    assert chunked.startswith(b"HTTP/1.1 413")
    assert client.post(CHAT, messages=HELLO, max_tokens=1).status == 200


def test_slow_heads_and_bodies_are_given_up(serve: Callable[..., Client]) -> None:
    client = serve(ServerSettings(port=0, body_seconds=0.3))
    began_s = time.monotonic()
    assert raw(client, b"GET /v1/mod").startswith(b"HTTP/1.1 408")
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n".encode()
    assert raw(client, head, b"{").startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began_s < 10


def test_a_body_that_is_cut_harms_nobody(client: Client) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", client.server.port)) as connection:
        connection.sendall(head + b"{")
    assert raw(client, b"\x00\xff nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert client.post(CHAT, messages=HELLO, max_tokens=1).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_engine(slow_client: Client, stream: bool) -> None:
    engine = slow_client.server.engine
    connection = slow_client.connect()
    connection.request("POST", CHAT, json.dumps({"model": "letters", **ENDLESS, "stream": stream}))
    if stream:
        assert next(frames(connection.getresponse())).json["choices"]
    assert until(lambda: engine.running == 1, 5)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    assert until(lambda: engine.running == 0, 1.0)
    assert engine.scheduler is not None
    assert engine.scheduler.totals.cancelled == 1


def test_a_full_queue_refuses_at_once_and_waiting_clients_may_leave(slow_client: Client) -> None:
    engine = slow_client.server.engine
    connections = [slow_client.connect() for _ in range(4)]
    for connection in connections:
        connection.request("POST", CHAT, json.dumps({"model": "letters", **ENDLESS}))
    assert until(lambda: engine.running + engine.waiting == 4, 5)
    began_s = time.monotonic()
    reply = slow_client.post(CHAT, **ENDLESS)
    assert time.monotonic() - began_s < 0.5
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (429, "queue_full", "2")
    connections[3].close()
    assert until(lambda: engine.waiting == 1, 1.0)
    for connection in connections[:3]:
        connection.close()
    assert until(lambda: engine.running == 0, 1.0)


def test_a_silent_stream_shows_signs_of_life(serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(ServerSettings(port=0, ping_seconds=0.05))
    engine = client.server.service.model.engine
    step, may_go_on = engine.step, threading.Event()

    def held(*arguments: Any, **named: Any) -> Any:
        may_go_on.wait(10)
        return step(*arguments, **named)

    monkeypatch.setattr(engine, "step", held)
    connection = client.connect()
    connection.request("POST", CHAT, json.dumps({"model": "letters", **ENDLESS, "max_tokens": 1, "stream": True}))
    response = connection.getresponse()
    lines = [response.readline() for _ in range(10)]
    assert lines.count(b": ping\n") >= 3
    may_go_on.set()
    assert [frame.data for frame in frames(response)][-1] == "[DONE]"


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(breaking: Callable[[int], Client]) -> None:
    told = breaking(4).stream(CHAT, **ENDLESS)
    assert told[-1].json["error"]["message"].startswith("internal error: RuntimeError: a bug.")
    assert len(told) > 2
    client = breaking(1)
    reply = client.post(CHAT, **ENDLESS)
    assert (reply.status, reply.headers["x-should-retry"]) == (500, "false")
    assert client.post(CHAT, **{**ENDLESS, "max_tokens": 2}).status == 200


def test_stopping_ends_streams_with_an_error_and_closes_the_model(slow_client: Client) -> None:
    told: list[Any] = []
    thread = threading.Thread(target=lambda: told.extend(slow_client.stream(CHAT, **ENDLESS)))
    thread.start()
    assert until(lambda: slow_client.server.engine.running == 1, 5)
    began_s = time.monotonic()
    slow_client.server.close()
    thread.join()
    assert time.monotonic() - began_s < 3
    assert told[-1].json["error"]["code"] == "stopping"
    assert slow_client.server.engine.state == "stopping"
    with pytest.raises(OSError):  # noqa: PT011 (refused or reset)
        slow_client.get("/v1/models")


def test_while_the_model_is_opened_the_server_says_so(letters_store: Any) -> None:
    from tests.server.conftest import loader

    may_go_on = threading.Event()

    def load() -> Any:
        may_go_on.wait(10)
        return loader(letters_store)()

    server = Server(load, ServerSettings(port=0))
    thread = threading.Thread(target=server.start)
    thread.start()
    client = Client(server)
    assert until(lambda: client.get("/v1/models").status == 503, 5)
    reply = client.post(CHAT, messages=HELLO, max_tokens=1)
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (503, "loading", "1")
    may_go_on.set()
    thread.join()
    assert client.post(CHAT, messages=HELLO, max_tokens=1).status == 200
    server.close()


def test_a_model_that_cannot_be_opened_ends_the_server() -> None:
    def load() -> Any:
        raise BudgetError("the budget is too small.", "Give more.")

    with pytest.raises(BudgetError, match="too small"):
        Server(load, ServerSettings(port=0)).start()


def test_a_port_that_is_taken_is_told_before_the_model_is_opened(client: Client) -> None:
    with pytest.raises(UsageError, match=f"cannot listen at 127.0.0.1, port {client.server.port}"):
        Server(lambda: None, ServerSettings(port=client.server.port))  # type: ignore[arg-type, return-value]
