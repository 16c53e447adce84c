"""The page's files, and streams that a page takes up again."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import nullcontext

import pytest

from edgemoe.server import kept_streams
from edgemoe.server.kept_streams import KeptStreams
from edgemoe.server.page_files import FOLDER
from edgemoe.server.refusals import RefusalError
from edgemoe.server.settings import ServerSettings
from tests.server.client import Client, Frame, frames

HELLO = [{"role": "user", "content": "Hello"}]
NAME = "a-page-made-this-up"


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_written_into_it() -> None:
    page = (FOLDER / "index.html").read_text("utf-8")
    assert "<style" not in page
    assert re.findall(r"<script[^>]*>(.)", page) == ["<"]
    named = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(named) == 3
    names = {path.name for path in FOLDER.iterdir()}
    assert {name.removeprefix("/static/") for name in named} <= names
    for path in FOLDER.glob("*.js"):
        imported = set(re.findall(r'"\./(part-[A-Z0-9]+\.js)"', path.read_text("utf-8")))
        assert imported <= names
    assert sum(len(gzip.compress(path.read_bytes(), 9)) for path in FOLDER.iterdir()) < 250 << 10


def test_the_page_needs_no_key_but_what_it_asks_does(serve: Callable[..., Client]) -> None:
    client = serve(ServerSettings(port=0, api_keys=("secret",)))
    reply = client.get("/")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    (script,) = re.findall(r'src="([^"]*)"', reply.body.decode())
    reply = client.get(script)
    assert (reply.status, reply.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert "immutable" in reply.headers["cache-control"]
    assert client.get("/edgemoe/about").status == 401
    about = Client(client.server, "secret").get("/edgemoe/about").json
    assert (about["interface"], about["loading"], about["model"]["id"]) == (1, False, "letters")


@pytest.mark.parametrize("name", ["../page_files.py", "..%2fpage_files.py", "absent.js", "%2e%2e/app.py"])
def test_other_files_are_not_sent(client: Client, name: str) -> None:
    assert client.get(f"/static/{name}").status == 404


def asked(client: Client, name: str = NAME, most: int | None = None, **body: object) -> tuple[int, list[Frame]]:
    """The first events of a kept stream; the connection is closed then."""
    connection = client.connect()
    try:
        data = {"model": "letters", "messages": HELLO, "stream": True, "temperature": 0, "max_tokens": 40, **body}
        response = client._send(connection, "POST", "/v1/chat/completions", data, {"x-edgemoe-stream": name})
        heard = []
        for frame in frames(response):
            heard.append(frame)
            if len(heard) == most:
                break
        return response.status, heard
    finally:
        connection.close()


def said(heard: list[Frame]) -> str:
    return "".join(one.json["choices"][0]["delta"].get("content") or "" for one in heard if one.data != "[DONE]")


def test_a_stream_is_taken_up_where_it_was_left(client: Client) -> None:
    _, whole = asked(client, "the-whole-of-it-at-once")
    status, begun = asked(client, most=5)
    assert status == 200
    reply = client.get(f"/edgemoe/streams/{NAME}?from=5")
    rest = [Frame(None, line[6:]) for line in reply.body.decode().splitlines() if line.startswith("data: ")]
    assert said(begun + rest) == said(whole)
    assert rest[-1].data == "[DONE]"
    assert asked(client)[0] == 400  # the name is taken
    assert client.ask("DELETE", f"/edgemoe/streams/{NAME}").json == {"ended": True}
    assert client.ask("DELETE", f"/edgemoe/streams/{NAME}").json == {"ended": False}
    assert client.get(f"/edgemoe/streams/{NAME}").status == 404
    assert client.get(f"/edgemoe/streams/{NAME}?from=x").status == 400


def test_a_stream_that_is_ended_ends_its_answer(client: Client) -> None:
    asked(client, "ended-by-its-own-name", most=3, max_tokens=200)
    assert client.ask("DELETE", "/edgemoe/streams/ended-by-its-own-name").json == {"ended": True}
    service = client.server.service
    for _ in range(500):
        if not service.engine.running:
            break
        client.get("/health")
    assert service.engine.running == 0


@pytest.mark.parametrize("name", ["short", "x" * 65, "with a space in it", "with/a/slash/in/it"])
def test_names_of_streams_are_checked(client: Client, name: str) -> None:
    assert asked(client, name)[0] == 400


async def counting(most: int, error: Exception | None = None) -> AsyncGenerator[bytes, None]:
    for number in range(most):
        yield b"%d" % number
        await asyncio.sleep(0)
    if error is not None:
        raise error


def test_what_is_kept_of_a_stream_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_streams, "MOST_BYTES", 3)

    async def go() -> None:
        streams = KeptStreams()
        assert [part async for part in streams.keep(NAME, counting(3))] == [b"0", b"1", b"2"]
        streams.keep("another-of-the-same", counting(6))
        await asyncio.sleep(0.01)
        assert [part async for part in streams.resume("another-of-the-same", 4)] == [b"4", b"5"]
        with pytest.raises(RefusalError, match="goes on further"):
            await anext_(streams.resume("another-of-the-same", 0))
        assert await streams.end("another-of-the-same")

    asyncio.run(go())


async def anext_(events: AsyncGenerator[bytes, None]) -> bytes:
    return await events.__anext__()


def test_streams_that_nobody_reads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_streams, "ALONE_SECONDS", 0.0)
    monkeypatch.setattr(kept_streams, "MOST_STREAMS", 1)

    async def go() -> None:
        streams = KeptStreams()
        events = streams.keep(NAME, counting(1 << 30))
        assert await anext_(events) == b"0"
        with pytest.raises(RefusalError, match="1 streams are kept"):
            streams.keep("another-of-the-same", counting(1))
        await events.aclose()
        await asyncio.sleep(0.001)
        assert [part async for part in streams.keep("another-of-the-same", counting(1))] == [b"0"]
        with pytest.raises(RefusalError, match="no such stream"):
            streams.resume(NAME, 0)

    asyncio.run(go())


def test_streams_that_have_ended_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_streams, "MOST_STREAMS", 2)

    async def go() -> None:
        streams = KeptStreams()
        for number in range(4):
            assert [part async for part in streams.keep(f"a-page-made-this-up-{number}", counting(1))] == [b"0"]
        for number, kept in enumerate((False, False, True, True)):
            with nullcontext() if kept else pytest.raises(RefusalError, match="no such stream"):
                streams.resume(f"a-page-made-this-up-{number}", 0)

    asyncio.run(go())


def test_an_error_of_a_stream_is_told_to_whoever_reads_it() -> None:
    async def go() -> None:
        streams = KeptStreams()
        with pytest.raises(ValueError, match="a bug"):
            [part async for part in streams.keep(NAME, counting(2, ValueError("a bug")))]
        with pytest.raises(ValueError, match="a bug"):
            [part async for part in streams.resume(NAME, 1)]

    asyncio.run(go())
