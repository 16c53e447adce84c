from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.options import EngineOptions
from edgemoe.server.server import Server
from edgemoe.server.settings import ServerSettings
from edgemoe.session.model import load
from tests.server.client import Client
from tests.support.checkpoints import SMALL_MIXTRAL, SMALL_QWEN, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer, write_tool_tokenizer
from tests.support.scripted import Script, scripted


def _store(folder: Path, config: dict[str, Any]) -> Path:
    write_checkpoint(folder / "source", {**config, "vocab_size": 96})
    write_letters_tokenizer(folder / "source")
    convert_checkpoint(str(folder / "source"), folder / "letters", experts="q4", dense="q8")
    return folder / "letters"


@pytest.fixture(scope="session")
def letters_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store of random weights whose tokens are characters."""
    return _store(tmp_path_factory.mktemp("letters"), SMALL_MIXTRAL)


@pytest.fixture(scope="session")
def recurrent_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with layers whose state no token can be taken out of again."""
    return _store(tmp_path_factory.mktemp("recurrent"), SMALL_QWEN)


@pytest.fixture(scope="session")
def tool_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store whose template knows tools and thoughts."""
    folder = tmp_path_factory.mktemp("tools")
    write_checkpoint(folder / "source", {**SMALL_MIXTRAL, "vocab_size": 102, "max_position_embeddings": 4096})
    assert write_tool_tokenizer(folder / "source") <= 102
    convert_checkpoint(str(folder / "source"), folder / "letters", experts="q4", dense="q8")
    return folder / "letters"


@pytest.fixture(scope="package")
def tool_server(tool_store: Path) -> Iterator[Server]:
    with Server(loader(tool_store, context_length=4096), ServerSettings(port=0)) as started:
        yield started


@pytest.fixture
def tool_client(tool_server: Server) -> Client:
    return Client(tool_server)


@pytest.fixture
def script(tool_server: Server) -> Iterator[Script]:
    """The answers of that server."""
    with scripted(tool_server.service.model.tokenizer) as made:
        yield made


def loader(store: Path, **options: Any) -> Callable[[], Any]:
    return functools.partial(load, store, EngineOptions(**{"context_length": 256, "sequences": 3, **options}))


@pytest.fixture(scope="package")
def server(letters_store: Path) -> Iterator[Server]:
    """A server in the background, which is closed before other tests replace what its threads use, such as clocks."""
    with Server(loader(letters_store), ServerSettings(port=0)) as started:
        yield started


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server)


@pytest.fixture
def serve(letters_store: Path) -> Iterator[Callable[..., Client]]:
    """Starts a server with other settings."""
    with ExitStack() as stack:

        def start(settings: ServerSettings | None = None, **options: Any) -> Client:
            made = Server(loader(letters_store, **options), settings or ServerSettings(port=0))
            return Client(stack.enter_context(made))

        yield start


@pytest.fixture
def breaking(serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Client]:
    """A server of which the step of a number, counted from now on, fails once."""
    client, left = serve(), [0]
    engine = client.server.service.model.engine
    step = engine.step

    def breaks(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("a bug")
        return step(*arguments, **named)

    def at(number: int) -> Client:
        left[0] = number
        return client

    monkeypatch.setattr(engine, "step", breaks)
    return at
